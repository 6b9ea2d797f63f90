"""KV states against a plain model: each state is a list of tokens, and no state that somebody holds ever changes."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from mfalcon.kv import KVPool, KVShape, KVState, PlainLayout

SHAPE = KVShape(num_layers=2, num_heads=3, qk_dim=2, v_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def pool(num_pages: int | None = None) -> KVPool:
    """Every page is poisoned: what is not written shows."""
    made = KVPool(PlainLayout(SHAPE, 64), 8 if num_pages is None else num_pages)
    for index in range(made.accounts.num_pages):
        made.page(index).fill_(0xFF)
    return made


def keys(numbers: list[int], layer: int) -> Tensor:
    """Keys that name their token, layer and head: [num_tokens, num_heads, qk_dim]."""
    heads = torch.arange(SHAPE.num_heads).view(1, -1, 1)
    column = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1)
    return (column * 100 + 10 * layer + heads).expand(-1, -1, SHAPE.qk_dim)


def values(numbers: list[int], layer: int) -> Tensor:
    return -keys(numbers, layer)[..., :1].expand(-1, -1, SHAPE.v_dim)


def written(state: KVState, numbers: list[int]) -> KVState:
    """The state extended by tokens that are named by a number each."""
    longer = state.extend(torch.tensor(numbers, dtype=torch.int64))
    for layer in range(SHAPE.num_layers):
        longer.write(layer, keys(numbers, layer).transpose(0, 1), values(numbers, layer).transpose(0, 1))
    return longer


def assert_holds(state: KVState, numbers: list[int]) -> None:
    assert state.num_tokens == len(numbers)
    assert state.times.tolist() == numbers
    for layer in range(SHAPE.num_layers):
        k, v = state.read(layer)
        assert torch.equal(k, keys(numbers, layer).transpose(0, 1))
        assert torch.equal(v, values(numbers, layer).transpose(0, 1))
    assert state.num_bytes >= len(numbers) * SHAPE.bytes_per_token()


class KVStates(RuleBasedStateMachine):
    """Grows a tree of states from one root, from tips and from inner nodes, and keeps them all."""

    states: Bundle[tuple[KVState, list[int]]] = Bundle("states")

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[KVState, list[int]]] = []
        self.next_number = 0

    @initialize(target=states)
    def root(self) -> tuple[KVState, list[int]]:
        self.pool = pool(400)
        self.held.append((self.pool.empty(), []))
        return self.held[-1]

    @rule(target=states, parent=states, num_new=st.sampled_from([0, 1, 2, 63, 64, 127, 128, 129]))
    def extend(self, parent: tuple[KVState, list[int]], num_new: int) -> tuple[KVState, list[int]]:
        state, numbers = parent
        new = list(range(self.next_number, self.next_number + num_new))
        self.next_number += num_new
        self.held.append((written(state, new), numbers + new))
        return self.held[-1]

    @rule(parent=states, num_new=st.sampled_from([1, 5]))
    def fail_halfway(self, parent: tuple[KVState, list[int]], num_new: int) -> None:
        """A forward that fails after it wrote one layer: what it left behind is nobody's state."""
        doomed = parent[0].extend(torch.full((num_new,), -7, dtype=torch.int64))
        doomed.write(0, keys([-7] * num_new, 0).transpose(0, 1), values([-7] * num_new, 0).transpose(0, 1))

    @invariant()
    def no_state_ever_changes(self) -> None:
        for state, numbers in self.held:
            assert_holds(state, numbers)
        self.pool.accounts.check_integrity(state.run for state in {id(s.run): s for s, _ in self.held}.values())


TestKVStates = KVStates.TestCase
TestKVStates.settings = settings(max_examples=20, stateful_step_count=16)


def test_appending_to_the_newest_state_copies_nothing() -> None:
    state = written(pool().empty(), list(range(63)))
    longer = written(state, [63])
    assert longer.run.pages == state.run.pages
    assert longer.num_bytes == state.num_bytes


def test_a_fork_copies_one_page() -> None:
    state = written(pool().empty(), list(range(100)))
    first = written(state, [100])
    second = written(state, [200])
    assert first.run.pages == state.run.pages
    assert second.run.pages[0] == state.run.pages[0] and second.run.pages[1] != state.run.pages[1]
    assert_holds(first, [*range(100), 100])
    assert_holds(second, [*range(100), 200])


def test_a_state_behind_a_full_page_copies_nothing() -> None:
    state = written(pool().empty(), list(range(64)))
    first, second = written(state, [1]), written(state, [2])
    assert first.run.pages[0] == second.run.pages[0] == state.run.pages[0]
    assert first.run.pages[1] != second.run.pages[1]


def test_pages_go_back_when_nobody_holds_them() -> None:
    some = pool(8)
    state = written(some.empty(), list(range(129)))
    longer = written(state, [7])
    del state
    assert some.accounts.num_free == 5
    del longer
    assert some.accounts.num_free == 8


def test_bytes_are_what_the_pages_take() -> None:
    some = pool(5)
    state = written(some.empty(), list(range(129)))
    assert state.num_bytes == 3 * some.page(0).numel() == 3 * some.num_bytes // 5
    assert all(address % 64 == 0 for address in state.addresses.tolist())
    assert some.empty().num_bytes == 0


@pytest.mark.parametrize(("first", "stop"), [(0, 0), (0, 1), (63, 65), (64, 128), (1, 200), (199, 200), (200, 200)])
def test_reading_a_part(first: int, stop: int) -> None:
    state = written(pool().empty(), list(range(200)))
    k, v = state.read(1, first, stop)
    assert torch.equal(k, keys(list(range(200)), 1).transpose(0, 1)[:, first:stop])
    assert torch.equal(v, values(list(range(200)), 1).transpose(0, 1)[:, first:stop])


def test_a_pool_without_a_limit_grows() -> None:
    grown = KVPool(PlainLayout(SHAPE, 64))
    held = [written(grown.empty(), list(range(64 * 10))) for _ in range(7)]
    assert grown.accounts.num_pages >= 70
    for state in held:
        assert_holds(state, list(range(640)))
    grown.accounts.check_integrity([state.run for state in held])

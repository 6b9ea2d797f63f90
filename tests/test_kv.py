"""KV states against a plain model: each state is a list of tokens, and no state that somebody holds ever changes."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from mfalcon.kv import KVShape, KVState, empty_state

SHAPE = KVShape(num_layers=2, num_heads=3, qk_dim=2, v_dim=4, dtype=torch.float32, device=torch.device("cpu"))


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
        longer.write(layer, keys(numbers, layer), values(numbers, layer))
    return longer


def assert_holds(state: KVState, numbers: list[int]) -> None:
    assert state.num_tokens == len(numbers)
    assert state.times.tolist() == numbers
    for layer in range(SHAPE.num_layers):
        assert torch.equal(state.k(layer), keys(numbers, layer).transpose(0, 1))
        assert torch.equal(state.v(layer), values(numbers, layer).transpose(0, 1))
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
        self.held.append((empty_state(SHAPE), []))
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
        doomed.write(0, keys([-7] * num_new, 0), values([-7] * num_new, 0))

    @invariant()
    def no_state_ever_changes(self) -> None:
        for state, numbers in self.held:
            assert_holds(state, numbers)


TestKVStates = KVStates.TestCase
TestKVStates.settings = settings(max_examples=20, stateful_step_count=16)


def test_appending_to_the_newest_state_copies_nothing() -> None:
    state = written(empty_state(SHAPE), list(range(63)))
    longer = written(state, [63])
    assert longer.buffer is state.buffer
    assert longer.num_bytes == state.num_bytes


def test_a_fork_copies() -> None:
    state = written(empty_state(SHAPE), list(range(63)))
    first = written(state, [100])
    second = written(state, [200])
    assert second.buffer is not first.buffer
    assert_holds(first, [*range(63), 100])
    assert_holds(second, [*range(63), 200])


def test_bytes_are_what_the_tensors_take() -> None:
    state = written(empty_state(SHAPE), list(range(129)))
    tensors = [*state.buffer.k, *state.buffer.v, state.buffer.times]
    assert state.num_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert empty_state(SHAPE).num_bytes == 0

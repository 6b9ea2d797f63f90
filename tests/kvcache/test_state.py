"""KV states against a plain model: each state is a list of tokens, and no state that somebody holds ever changes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from tests.operations import operations

SHAPE = KVShape(num_layers=2, num_heads=3, qk_dim=2, v_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def pool(num_pages: int | None = None, page_tokens: int = 64) -> KVPool:
    """Every page is poisoned: what is not written shows. Pages of 128 tokens may be cut up into four."""
    made = KVPool(PlainLayout(SHAPE, page_tokens), 8 if num_pages is None else num_pages)
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
    page_tokens = 64

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[KVState, list[int]]] = []
        self.next_number = 0

    @initialize(target=states)
    def root(self) -> tuple[KVState, list[int]]:
        self.pool = pool(400, self.page_tokens)
        self.held.append((self.pool.empty(), []))
        return self.held[-1]

    @rule(target=states, parent=states, num_new=st.sampled_from([0, 1, 2, 31, 32, 63, 64, 127, 128, 129]))
    def extend(self, parent: tuple[KVState, list[int]], num_new: int) -> tuple[KVState, list[int]]:
        state, numbers = parent
        new = list(range(self.next_number, self.next_number + num_new))
        self.next_number += num_new
        self.held.append((written(state, new), numbers + new))
        return self.held[-1]

    @rule(target=states, parent=states, share=st.floats(0, 1))
    def go_back(self, parent: tuple[KVState, list[int]], share: float) -> tuple[KVState, list[int]]:
        state, numbers = parent
        num_tokens = round(share * len(numbers))
        self.held.append((state.first(num_tokens), numbers[:num_tokens]))
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


class SmallKVStates(KVStates):
    """On pages that are cut up for states of few tokens."""

    page_tokens = 128


TestKVStates = KVStates.TestCase
TestSmallKVStates = SmallKVStates.TestCase
TestKVStates.settings = TestSmallKVStates.settings = settings(max_examples=20, stateful_step_count=16)


def test_bytes_of_a_state_are_those_of_its_pages() -> None:
    some = pool(8, 128)
    small = some.layout.page_bytes // 4
    for num_tokens, pages in ((1, 1), (32, 1), (33, 2), (96, 3), (97, 4), (128, 4), (129, 8)):
        state = written(some.empty(), list(range(num_tokens)))
        assert state.num_bytes == pages * small
        assert some.num_free_bytes == some.num_bytes - pages * small
        del state
    assert some.num_free_bytes == some.num_bytes


@pytest.mark.parametrize("codes", [None, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("size", "other"), [(128, 32), (32, 128)])
def test_tokens_are_moved_as_they_stand(codes: torch.dtype | None, size: int, other: int) -> None:
    """Codes and scales too, and V transposed; nothing behind them."""
    layout = PlainLayout(SHAPE, 128, codes, transposed=codes == torch.float8_e4m3fn)
    one, another = (KVPool(layout, 3) for _ in range(2))
    another.slab.fill_(0xFF)
    state = one.empty().grown(100, page_tokens=size)
    state.write_times(torch.arange(100))
    for layer in range(SHAPE.num_layers):
        state.write(layer, *(torch.randn(SHAPE.num_heads, 100, dim) for dim in (SHAPE.qk_dim, SHAPE.v_dim)))
    to = another.empty().grown(100, page_tokens=other)
    state.layout.copy(state.pages, to.pages, other, 90)
    assert to.times[:90].tolist() == list(range(90)) and (to.times[90:] == -1).all()
    assert isinstance(to.layout, PlainLayout)
    for layer in range(SHAPE.num_layers):
        assert all(torch.equal(x[:, :90], y) for x, y in zip(state.read(layer), to.read(layer, 0, 90), strict=True))
        keys = torch.cat([to.layout.blocks(page, layer)[0] for page in to.pages], 1)[:, 90:100]
        assert (keys.contiguous().view(torch.uint8) == 0xFF).all()


@pytest.mark.parametrize("first", [0, 5, 64])
def test_times_of_many_pages_are_one_copy(first: int) -> None:
    """Not one a page: on a device each is a launch."""
    times = torch.arange(1_000)
    older = pool(32).empty().extend(times[:first])
    with operations() as ran:
        longer = older.extend(times[first:])
    assert ran == ["aten::index_put_"]
    assert torch.equal(longer.times, times)
    grown = pool(32).empty().grown(1_000)
    with operations() as ran:
        grown.extend(torch.tensor([7]))
    assert ran[-1:] == ["aten::copy_"] and len(ran) <= 2


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


CODES = [None, torch.int8, torch.float8_e4m3fn]
CODE_SHAPE = KVShape(num_layers=3, num_heads=2, qk_dim=5, v_dim=7, dtype=torch.float32, device=torch.device("cpu"))


def random_kv(num_tokens: int, shape: KVShape) -> tuple[Tensor, Tensor]:
    """Magnitudes from 1e-3 to 1e3, by token and head; one head of zeros."""
    generator = torch.Generator().manual_seed(num_tokens)
    size = 10 ** (6 * torch.rand(shape.num_heads, num_tokens, 1, generator=generator) - 3)
    k, v = (
        size * torch.randn(shape.num_heads, num_tokens, dim, generator=generator) for dim in (shape.qk_dim, shape.v_dim)
    )
    k[0, 0] = 0
    return k.to(shape.dtype), v.to(shape.dtype)


def allowed(x: Tensor, codes: torch.dtype | None) -> Tensor:
    """Error of each number. int8: half a step of the head's scale. float8: 3 bits of mantissa, 2**-4 of the magnitude,
    and half of the smallest code, 2**-9, below the normal ones. And the rounding of the compute dtype.
    """
    wide, largest = x.double().abs(), x.double().abs().amax(-1, keepdim=True)
    rounding = 2 * torch.finfo(x.dtype).eps * largest
    match codes:
        case torch.int8:
            return largest / 127 / 2 + rounding + largest * 2**-22
        case torch.float8_e4m3fn:
            return wide * 2**-4 + largest / 448 * 2**-10 + rounding + largest * 2**-22
        case _:
            return torch.zeros_like(wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_read_is_what_was_written_within_the_codes_error(
    codes: torch.dtype | None, dtype: torch.dtype, transposed: bool
) -> None:
    layout = PlainLayout(replace(CODE_SHAPE, dtype=dtype), 8, codes, transposed)
    some = KVPool(layout, 5)
    some.slab.fill_(0xFF)
    state = some.empty().extend(torch.arange(19)).extend(torch.arange(19, 37))
    expected = [random_kv(37, layout.shape) for _ in range(3)]
    for layer, (k, v) in enumerate(expected):
        layout.write(state.pages, layer, 0, k[:, :11], v[:, :11])
        layout.write(state.pages, layer, 11, k[:, 11:], v[:, 11:])
    for layer, pair in enumerate(expected):
        for written_x, read_x in zip(pair, state.read(layer), strict=True):
            assert read_x.dtype == dtype
            error = (read_x.double() - written_x.double()).abs()
            assert (error <= allowed(written_x, codes)).all()
            assert codes is None or error.max() > 0
        part = state.read(layer, 7, 17)
        assert all(torch.equal(a, b[:, 7:17]) for a, b in zip(part, state.read(layer), strict=True))
    assert state.times.tolist() == list(range(37))


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_are_views_of_what_is_read(codes: torch.dtype | None, transposed: bool) -> None:
    layout = PlainLayout(CODE_SHAPE, 8, codes, transposed)
    some = KVPool(layout, 6)
    first = some.empty().extend(torch.arange(3))  # so that the pages of the state are not the first ones
    state = some.empty().extend(torch.arange(29))
    for layer in range(3):
        state.write(layer, *random_kv(29, CODE_SHAPE))
    own = torch.tensor(state.run.pages)
    assert layout.times(some.slab).shape == (6, 8)
    assert layout.times(some.slab)[own].flatten()[:29].tolist() == state.times.tolist()
    for layer in range(3):
        k, v, k_scales, v_scales = layout.blocks(some.slab, layer)
        assert k.shape == (6, 2, 8, 5) and v.shape == (6, 2, 8, 7)
        assert k.dtype == v.dtype == (codes or torch.float32) and k.stride()[1:] == (40, 5, 1)
        assert v.stride()[1:] == ((56, 1, 8) if transposed else (56, 7, 1))
        assert (k_scales is None) == (v_scales is None) == (codes is None)
        for x, scales, expected in zip((k, v), (k_scales, v_scales), state.read(layer), strict=True):
            number = x[own].float() if scales is None else x[own].float() * scales[own].unsqueeze(-1)
            assert torch.equal(number.transpose(0, 1).flatten(1, 2)[:, :29], expected)
            for block in (x,) if scales is None else (x, scales):
                at = block.data_ptr() - some.slab.data_ptr()
                assert at % 64 == 0 and layout.layer_bytes(layer).start <= at < layout.layer_bytes(layer).stop
        v[own[1]] = 0  # a view: what is written here is read there
        assert not state.read(layer)[1][:, 8:16].any()
    assert layout.layer_bytes(2).stop == layout.page_bytes
    assert [layout.layer_bytes(layer).stop == layout.layer_bytes(layer + 1).start for layer in (0, 1)] == [True] * 2
    del first


def test_codes_make_pages_smaller() -> None:
    shape = replace(CODE_SHAPE, qk_dim=64, v_dim=64)
    plain, int8, fp8 = (PlainLayout(shape, 128, codes).page_bytes for codes in CODES)
    assert int8 == fp8 < plain / 3.5


def test_only_a_pool_of_fixed_size_has_a_slab() -> None:
    with pytest.raises(AssertionError, match="grows"):
        _ = KVPool(PlainLayout(SHAPE, 64)).slab
    some = pool(5)
    assert some.slab.shape == (5, some.layout.page_bytes)
    assert [some.slab[index].data_ptr() for index in range(5)] == [some.page(index).data_ptr() for index in range(5)]


class Waits:
    """An arrival that notes who waited."""

    def __init__(self) -> None:
        self.done = False
        self.parts: list[int] = []

    def wait(self, part: int) -> None:
        self.parts.append(part)

    def taken(self) -> list[int]:
        parts, self.parts = self.parts, []
        return parts


def test_everything_that_touches_a_page_waits_for_its_part() -> None:
    arrival = Waits()
    state = replace(written(pool().empty(), list(range(70))), arrival=arrival)
    assert state.arriving
    assert state.times.numel() == 70 and arrival.taken() == [0]
    for layer in range(2):
        state.read(layer)
        state.wait(layer)
        assert arrival.taken() == [1 + layer] * 2
    assert len(state.addresses) == 2 and arrival.taken() == [2]
    longer = state.extend(torch.tensor([1]))
    assert longer.arrival is arrival and arrival.taken() == [0]
    longer.write(1, keys([1], 1).transpose(0, 1), values([1], 1).transpose(0, 1))
    assert arrival.taken() == [2]
    fork = state.extend(torch.tensor([2]))
    assert fork.arrival is arrival and arrival.taken() == [2, 0]  # it copied a page: all of it had to be here
    assert state.extend(torch.tensor([], dtype=torch.int64)) is state and not arrival.taken()
    arrival.done = True
    assert not longer.arriving
    assert longer.extend(torch.tensor([3])).arrival is None


@pytest.mark.gpu
@pytest.mark.parametrize("codes", CODES)
def test_pages_of_a_device_read_the_same(codes: torch.dtype | None) -> None:
    states = []
    for device in ("cpu", "cuda"):
        shape = replace(CODE_SHAPE, device=torch.device(device))
        state = KVPool(PlainLayout(shape, 8, codes), 5).empty().extend(torch.arange(37, device=device))
        for layer in range(3):
            k, v = random_kv(37, CODE_SHAPE)
            state.write(layer, k.to(device), v.to(device))
        states.append(state)
    for layer in range(3):
        for here, there in zip(states[0].read(layer), states[1].read(layer), strict=True):
            assert torch.equal(here, there.cpu())

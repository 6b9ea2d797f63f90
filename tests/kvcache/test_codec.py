"""KV states through chunks and back: exact where the dtype allows it, within a stated error where it does not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import reference
from mfalcon.errors import Overloaded
from mfalcon.kvcache.chunk import ChunkHeader, ChunkLayout, PayloadDtype, is_finite, pack, unpack
from mfalcon.kvcache.codec import decode, encode, exact_dtype
from mfalcon.kvcache.state import KVPool, KVShape, KVState, PlainLayout
from mfalcon.models.base import Targets
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import prefix_rankers
from tests.small import CPU, NOW_MS, random_events, small_checkpoint, small_config, some_rows, tokens

SHAPE = KVShape(num_layers=2, num_heads=3, qk_dim=5, v_dim=7, dtype=torch.float32, device=CPU)
LOSSLESS = {
    torch.float32: PayloadDtype.FLOAT32,
    torch.float64: PayloadDtype.FLOAT64,
    torch.bfloat16: PayloadDtype.BFLOAT16,
    torch.float16: PayloadDtype.FLOAT16,
}

BFLOAT16_ERROR = 2**-8
"""Relative: half a unit in the last of 8 bits, the first of which is always 1."""

FLOAT16_ERROR = 2**-11
"""The same of 11 bits."""

INT8_ERROR = 0.5 / 127 * (1 + 2**-10)
"""Of the largest magnitude of the token's head: half a scale, rounded up by at most a unit of float16's 11 bits."""


def pool_of(shape: KVShape) -> KVPool:
    return KVPool(PlainLayout(shape))


def random_state(num_tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> KVState:
    """Magnitudes from 1e-2 to 1e2, by token and head."""
    generator = torch.Generator().manual_seed(seed)

    def block(head_dim: int) -> Tensor:
        size = 10 ** (4 * torch.rand(num_tokens, SHAPE.num_heads, 1, generator=generator) - 2)
        signs = torch.randint(0, 2, (num_tokens, SHAPE.num_heads, head_dim), generator=generator) * 2 - 1
        return signs * size * (1 + torch.rand(num_tokens, SHAPE.num_heads, head_dim, generator=generator))

    with torch.inference_mode():
        times = torch.randint(-(2**62), 2**62, (num_tokens,), generator=generator)
        state = pool_of(replace(SHAPE, dtype=dtype)).empty().extend(times)
        for layer in range(SHAPE.num_layers):
            state.write(layer, block(SHAPE.qk_dim).transpose(0, 1), block(SHAPE.v_dim).transpose(0, 1))
    return state


def filled_state(numbers: Tensor) -> KVState:
    """One token: these numbers are the keys of every head in layer 0, the rest is 1."""
    with torch.inference_mode():
        state = pool_of(replace(SHAPE, dtype=numbers.dtype)).empty().extend(torch.zeros(1, dtype=torch.int64))
        ones = torch.ones(SHAPE.num_heads, 1, SHAPE.v_dim)
        for layer in range(SHAPE.num_layers):
            state.write(layer, ones[..., : SHAPE.qk_dim], ones)
        state.write(0, numbers.expand(SHAPE.num_heads, 1, SHAPE.qk_dim), ones)
    return state


def there_and_back(state: KVState, dtype: PayloadDtype) -> KVState:
    payload = encode(state, 0, state.num_tokens, dtype)
    return decode([(payload, state.num_tokens)], state.pool, dtype)


def blocks(state: KVState) -> list[Tensor]:
    layers = [state.read(layer) for layer in range(state.pool.layout.shape.num_layers)]
    return [*(k for k, _ in layers), *(v for _, v in layers)]


def assert_same(state: KVState, other: KVState) -> None:
    assert torch.equal(state.times, other.times)
    for mine, others in zip(blocks(state), blocks(other), strict=True):
        assert mine.dtype == others.dtype
        assert torch.equal(mine, others)


def worst_relative(state: KVState, other: KVState) -> float:
    """Largest error, as a part of the number itself."""
    return max(((b - a).abs() / a.abs()).max().item() for a, b in pairs(state, other))


def worst_of_head(state: KVState, other: KVState) -> float:
    """Largest error, as a part of the largest magnitude of its token's head."""
    return max(((b - a).abs() / a.abs().amax(-1, keepdim=True)).max().item() for a, b in pairs(state, other))


def pairs(state: KVState, other: KVState) -> list[tuple[Tensor, Tensor]]:
    return [(a.double(), b.double()) for a, b in zip(blocks(state), blocks(other), strict=True)]


@pytest.mark.parametrize("num_events", [1, 63, 77])
@pytest.mark.parametrize("tokens_per_event", [1, 2])
@pytest.mark.parametrize("dtype", PayloadDtype)
@pytest.mark.parametrize("compute", LOSSLESS)
def test_round_trip_through_chunks(
    compute: torch.dtype, dtype: PayloadDtype, tokens_per_event: int, num_events: int
) -> None:
    state = random_state(num_events * tokens_per_event, compute)
    shape = state.pool.layout.shape
    layout = ChunkLayout(
        bytes(16), tokens_per_event, shape.num_layers, shape.num_heads, shape.qk_dim, shape.v_dim, dtype
    )
    payload = encode(state, 0, state.num_tokens, dtype)
    assert payload.nbytes == layout.payload_bytes(num_events)
    value = pack(ChunkHeader(layout, bytes(16), bytes(16), 0, 0, num_events), payload, None)
    _, found = unpack(value, layout, bytes(16), None)
    back = decode([(found, state.num_tokens)], state.pool, dtype)
    assert back.num_tokens == state.num_tokens
    assert torch.equal(back.times, state.times)
    # Of the decoded number itself.
    rounding = {torch.bfloat16: BFLOAT16_ERROR, torch.float16: FLOAT16_ERROR}.get(compute, 0.0)
    if dtype is PayloadDtype.INT8:
        assert INT8_ERROR / 2 < worst_of_head(state, back) <= INT8_ERROR + rounding + 1e-6
    elif dtype is PayloadDtype.BFLOAT16 and compute != torch.bfloat16:
        assert BFLOAT16_ERROR / 2 < worst_relative(state, back) <= BFLOAT16_ERROR
    elif dtype is PayloadDtype.FLOAT16 and compute != torch.float16:
        assert worst_relative(state, back) <= FLOAT16_ERROR
    elif dtype is PayloadDtype.FLOAT32 and compute == torch.float64:
        assert worst_relative(state, back) <= 2**-24
    else:
        assert_same(back, state)


@pytest.mark.parametrize("dtype", PayloadDtype)
def test_cuts_change_nothing(dtype: PayloadDtype) -> None:
    state = random_state(77)
    cuts = [0, 1, 2, 32, 63, 77]
    parts = [(encode(state, a, b, dtype), b - a) for a, b in pairwise(cuts)]
    assert_same(decode(parts, state.pool, dtype), there_and_back(state, dtype))


def test_no_payload_is_an_empty_state() -> None:
    state = decode([], pool_of(SHAPE), PayloadDtype.INT8)
    assert state.num_tokens == state.num_bytes == 0


@pytest.mark.parametrize("compute", LOSSLESS)
def test_the_state_s_own_dtype_keeps_every_bit(compute: torch.dtype) -> None:
    assert exact_dtype(compute) is LOSSLESS[compute]
    special = torch.tensor([-0.0, float("inf"), float("nan"), torch.finfo(compute).tiny / 2, -1], dtype=compute)
    state = filled_state(special)
    back = there_and_back(state, LOSSLESS[compute])
    assert (
        back.read(0)[0].contiguous().view(torch.uint8).tolist()
        == state.read(0)[0].contiguous().view(torch.uint8).tolist()
    )


def test_bfloat16_rounds_to_nearest_even() -> None:
    state = filled_state(torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 1.0]))
    assert there_and_back(state, PayloadDtype.BFLOAT16).read(0)[0][0, 0].tolist() == [
        1.0,
        1 + 4 * 2**-8,
        1 + 2 * 2**-8,
        -1.0,
        1.0,
    ]


@pytest.mark.parametrize("dtype", [PayloadDtype.BFLOAT16, PayloadDtype.INT8])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_what_came_back_goes_the_same_way_again(compute: torch.dtype, dtype: PayloadDtype) -> None:
    """Decoding and encoding again does not wear a state out.

    int8: the largest code is 127 and gives the same scale again; a bfloat16 state's largest number is even restored,
    and rounding the others to 8 bits moves them by less than half a code (127 * 2**-8). Holds while scales are normal
    float16 numbers.
    """
    state = random_state(77, compute)
    once = there_and_back(state, dtype)
    assert encode(once, 0, 77, dtype) == encode(state, 0, 77, dtype)
    assert_same(there_and_back(once, dtype), once)


def int8_scales(payload: memoryview, num_tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """[K and V, layers, heads, tokens]."""
    count = 2 * SHAPE.num_layers * SHAPE.num_heads * num_tokens
    scales = np.frombuffer(payload, dtype=np.float16, count=count, offset=8 * num_tokens)
    return scales.reshape(2, SHAPE.num_layers, SHAPE.num_heads, num_tokens)


def test_int8_scales_are_rounded_up_by_less_than_a_unit() -> None:
    state = random_state(77)
    scales = int8_scales(encode(state, 0, 77, PayloadDtype.INT8), 77).astype(np.float64)
    largest = torch.stack([block.abs().amax(-1) for block in blocks(state)]).double().numpy().reshape(scales.shape)
    assert (scales * 127 >= largest).all()
    assert (np.nextafter(scales.astype(np.float16), np.float16(0)).astype(np.float64) * 127 < largest).all()


@pytest.mark.parametrize("compute", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("largest", [2.0**-30, 2.0**-24, 1e-7, 7e-6, 1e-4])
def test_int8_of_tiny_numbers_errs_by_half_of_float16_s_smallest(largest: float, compute: torch.dtype) -> None:
    """Scales below 2**-14 are multiples of 2**-24."""
    numbers = largest * torch.tensor([1.0, -0.7, 0.5, 0.3, 0.0], dtype=torch.float64)
    state = filled_state(numbers.to(compute))
    back = there_and_back(state, PayloadDtype.INT8)
    error = (back.read(0)[0].double() - state.read(0)[0].double()).abs().max().item()
    rounding = BFLOAT16_ERROR * largest if compute == torch.bfloat16 else 0
    assert error <= 0.5 * (largest / 127 + 2**-24) * (1 + 1e-6) + rounding


def test_int8_at_its_limits() -> None:
    zeros = there_and_back(filled_state(torch.zeros(5)), PayloadDtype.INT8)
    assert zeros.read(0)[0].tolist() == torch.zeros(3, 1, 5).tolist()
    huge = there_and_back(filled_state(torch.tensor([1e30, -1e30, 8e6, 0.0, float("inf")])), PayloadDtype.INT8)
    assert huge.read(0)[0][0, 0].tolist() == [65504 * 127, -65504 * 127, 65504 * 122, 0, 65504 * 127]
    lost = there_and_back(filled_state(torch.tensor([1.0, float("nan"), 0, 0, 0])), PayloadDtype.INT8)
    assert lost.read(0)[0].isnan().all()  # no number that looks like one
    assert all(not block.isnan().any() for block in blocks(lost)[1:])


def test_a_full_pool_is_no_place_for_what_is_brought_ahead() -> None:
    state = random_state(63)
    payload = encode(state, 0, 63, PayloadDtype.FLOAT32)
    with pytest.raises(Overloaded, match=r"2 pages.* 1 more"):
        decode([(payload, 63)], KVPool(PlainLayout(SHAPE), num_pages=2, reserved=2), PayloadDtype.FLOAT32)
    assert_same(decode([(payload, 63)], KVPool(PlainLayout(SHAPE), 2, reserved=1), PayloadDtype.FLOAT32), state)


def test_tokens_written_behind_a_state_are_not_its_own() -> None:
    state = random_state(60)
    before = bytes(encode(state, 32, 60, PayloadDtype.FLOAT32))
    with torch.inference_mode():
        longer = state.extend(torch.zeros(3, dtype=torch.int64))
        longer.write(0, torch.full((3, 3, 5), torch.nan), torch.full((3, 3, 7), torch.nan))
    assert longer.run.pages == state.run.pages
    assert encode(state, 32, 60, PayloadDtype.FLOAT32) == before


def test_payloads_at_odd_addresses() -> None:
    state = random_state(63)
    for dtype in PayloadDtype:
        payload = encode(state, 0, 63, dtype)
        odd = memoryview(b"1" + bytes(payload))[1:]
        assert_same(decode([(odd, 63)], state.pool, dtype), decode([(payload, 63)], state.pool, dtype))


def scores(checkpoint: Checkpoint, state: KVState) -> Tensor:
    """[num_targets, num_tasks]."""
    with torch.inference_mode():
        return score(reference(checkpoint.model), state, Targets(some_rows(63), torch.tensor([1, 5])), NOW_MS, 63)


SCORE_ERRORS = {
    # of the scores' spread: K and V are off by less, and errors partly cancel (measured up to 1.2e-3 and 3.9e-3)
    PayloadDtype.BFLOAT16: BFLOAT16_ERROR / 2,
    PayloadDtype.INT8: 2 * INT8_ERROR,
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("architecture", prefix_rankers())
def test_scores_on_a_decoded_state(architecture: str, seed: int) -> None:
    config = small_config(architecture, max_history=77)
    checkpoint = small_checkpoint(architecture, torch.float32, seed, config)
    with torch.inference_mode():
        state = prefill(reference(checkpoint.model), tokens(checkpoint, random_events(77, seed)))
    expected = scores(checkpoint, state)
    assert torch.equal(scores(checkpoint, there_and_back(state, PayloadDtype.FLOAT32)), expected)
    for dtype, bound in SCORE_ERRORS.items():
        moved = (scores(checkpoint, there_and_back(state, dtype)) - expected).abs().amax(0) / expected.std(0)
        assert 0 < moved.max().item() < bound, dtype


@pytest.mark.parametrize("architecture", prefix_rankers())
def test_another_thread_decodes_what_this_one_extends(architecture: str) -> None:
    """The worker's part of the job, and the device thread's after it: equal to never having left."""
    checkpoint = small_checkpoint(architecture, torch.float32)
    events = random_events(24)
    with torch.inference_mode():
        whole = prefill(reference(checkpoint.model), tokens(checkpoint, events))
        state = prefill(reference(checkpoint.model), tokens(checkpoint, events[:21]))
    with ThreadPoolExecutor(1) as worker:
        back = worker.submit(there_and_back, state, PayloadDtype.FLOAT32).result()
    with torch.inference_mode():
        longer = append(reference(checkpoint.model), back, tokens(checkpoint, events[21:]))
        expected = append(reference(checkpoint.model), state, tokens(checkpoint, events[21:]))
    assert_same(longer, expected)
    assert torch.allclose(scores(checkpoint, longer), scores(checkpoint, whole), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", PayloadDtype)
def test_the_device_makes_the_same_bytes_and_states(dtype: PayloadDtype) -> None:
    state = random_state(77)
    device = pool_of(replace(SHAPE, device=torch.device("cuda")))
    exact = PayloadDtype.FLOAT32
    there = decode([(encode(state, 0, 77, exact), 77)], device, exact)
    payload = encode(there, 0, 77, dtype)
    assert payload == encode(state, 0, 77, dtype)
    for mine, others in zip(
        blocks(decode([(payload, 77)], device, dtype)), blocks(there_and_back(state, dtype)), strict=True
    ):
        assert torch.equal(mine.cpu(), others)


@pytest.mark.parametrize("bad", [float("nan"), float("-nan"), float("inf"), float("-inf"), None])
@pytest.mark.parametrize("dtype", PayloadDtype)
@pytest.mark.parametrize("compute", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_none_is_found_in_every_payload(
    compute: torch.dtype, dtype: PayloadDtype, bad: float | None
) -> None:
    """Of K or V, of the first token or the last. int8 saturates what is infinite, as it does what is too large."""
    layout = ChunkLayout(bytes(16), 1, SHAPE.num_layers, SHAPE.num_heads, SHAPE.qk_dim, SHAPE.v_dim, dtype)
    for is_value, layer, head, token in ((0, 0, 0, 0), (1, 1, 2, 8)):
        state = random_state(9, compute)
        assert is_finite(encode(state, 0, 9, dtype), layout)
        if bad is not None:
            with torch.inference_mode():
                kv = state.read(layer)
                kv[is_value][head, token, 0] = bad
                state.write(layer, *kv)
            saturated = dtype is PayloadDtype.INT8 and bad in (float("inf"), float("-inf"))
            assert is_finite(encode(state, 0, 9, dtype), layout) == saturated


@pytest.mark.parametrize("dtype", [PayloadDtype.FLOAT32, PayloadDtype.BFLOAT16, PayloadDtype.INT8])
def test_what_a_payload_can_hold_is_finite_in_float16_too(dtype: PayloadDtype) -> None:
    """The largest numbers of float16 round up in bfloat16 and in int8's scales; a forged one is larger still."""
    state = random_state(3, torch.float16)
    largest = torch.finfo(torch.float16).max
    with torch.inference_mode():
        k, v = state.read(0)
        state.write(0, torch.full_like(k, largest), torch.full_like(v, -largest))
        payload = encode(state, 0, 3, dtype)
        decoded = decode([(payload, 3)], pool_of(replace(SHAPE, dtype=torch.float16)), dtype)
        k, v = decoded.read(0)
        assert (k == largest).all()
        assert (v == -largest).all()

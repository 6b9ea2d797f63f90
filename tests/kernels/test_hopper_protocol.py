"""The barriers of the Hopper kernels' own code order its warps: in every interleaving each buffer is written once
before it is read, by all who share it, is not overwritten before that, and nobody waits for ever.
"""

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("triton", reason="no triton for this platform")

import torch

from kernels.gpu.hopper import fp8_target_attention, pipeline, prefix_attention, target_attention
from kernels.gpu.hopper.launch import Ring
from kernels.paged import PagedKV, batch
from tests.device import INTERPRETED
from tests.kernels.hopper_machine import Machine, changed
from tests.kernels.hopper_protocol import Arrive, Copy, Done, Operation, Program, ProtocolError, Read, Wait, explore

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="computes on the CPU")

BLOCK_N = 16


def program(tiles: int, stages: int, changes: dict[str, Callable[..., Any]] | None = None, seed: int = 0) -> Program:
    """What target attention over so many tiles does at its barriers."""
    machine, kv = Machine(seed, changes), pages_of(tiles)
    q, k, v = (torch.ones(2, 1, 64) for _ in range(3))
    users = batch([2], [tiles * BLOCK_N - 3], [list(range(tiles))], tile_rows=128)
    op = machine.wrapper(target_attention.target_attention_parts, ring=lambda *_: Ring(BLOCK_N, stages))
    op(q, k, v, kv, users, None, None, logit_scale=1.0, norm=1.0)
    (found,) = machine.programs
    return found


def causal_program(tiles: int, stages: int) -> Program:
    """What prefix attention of the newest rows does."""
    machine = Machine()
    users = batch([20 if tiles > 1 else 2], [tiles * BLOCK_N - 3], [list(range(tiles))], tile_rows=128)
    op = machine.wrapper(prefix_attention.prefix_attention_parts, ring=lambda *_, rab: Ring(BLOCK_N, stages))
    op(torch.ones(len(users.tiles) * 20, 1, 64), pages_of(tiles), users, None, logit_scale=1.0, norm=1.0)
    (found,) = machine.programs
    return found


def fp8_program(tiles: int, stages: int, changes: dict[str, Callable[..., Any]] | None = None) -> Program:
    """What target attention does with float8 products."""
    machine, block_n = Machine(changed=changes), 32
    codes, scales = torch.ones(tiles, 1, block_n, 64).to(torch.float8_e4m3fn), torch.ones(tiles, 1, block_n)
    times = torch.zeros(tiles, block_n, dtype=torch.int64)
    kv = PagedKV(codes, codes.mT.contiguous().mT, times, scales, scales)
    q, k, v = (torch.ones(2, 1, 64) for _ in range(3))
    users = batch([2], [tiles * block_n - 3], [list(range(tiles))], tile_rows=128)
    op = machine.wrapper(fp8_target_attention.target_attention_parts, FP8_RING=Ring(block_n, stages))
    op(q, k, v, kv, users, None, None, logit_scale=1.0, norm=1.0)
    (found,) = machine.programs
    return found


def pages_of(tiles: int) -> PagedKV:
    ones = torch.ones(tiles, 1, BLOCK_N, 64)
    return PagedKV(ones, ones, torch.zeros(tiles, BLOCK_N, dtype=torch.int64))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 3, 7, 20])
def test_prefix_attention_does_the_same_as_target_attention(tiles: int, stages: int) -> None:
    """At its barriers, so what is found of one holds for both."""
    assert causal_program(tiles, stages) == program(tiles, stages)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 5, 8, 13, 20])
def test_every_order_is_right(tiles: int, stages: int) -> None:
    assert explore(program(tiles, stages)) > tiles


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 13])
def test_every_order_is_right_with_float8_products(tiles: int, stages: int) -> None:
    """The scales of a tile come with its keys, and the queries from registers."""
    assert explore(fp8_program(tiles, stages)) > tiles


@pytest.mark.thorough
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", sorted(set(range(1, 21)) - {1, 2, 3, 5, 13}))
def test_every_order_of_the_other_numbers_of_tiles_is_right_with_float8(tiles: int, stages: int) -> None:
    assert explore(fp8_program(tiles, stages)) > tiles


@pytest.mark.thorough
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("tiles", sorted(set(range(1, 21)) - {1, 2, 3, 4, 5, 8, 13, 20}))
def test_every_order_of_the_other_numbers_of_tiles_is_right(tiles: int, stages: int) -> None:
    assert explore(program(tiles, stages)) > tiles


def test_what_is_done_does_not_depend_on_the_order() -> None:
    """So one recording stands for all: the agents' programs are the same however they were interleaved."""
    first, *others = [program(6, 2, seed=seed) for seed in range(5)]
    assert all(other == first for other in others)
    assert [len(program(tiles, 2).agents["producer"]) for tiles in (1, 2, 3)] == [9, 15, 21]


PRODUCE, CONSUME, ALLOCATE = pipeline.produce, target_attention._consume, pipeline.allocate_ring
MISTAKES = {
    "wrong phase of the producer": (PRODUCE, "& 1) ^ 1", "& 1)", "deadlock"),
    "producer waits for no keys to be read": (
        PRODUCE,
        "mbarrier.wait(k_empty.index(stage), free)",
        "pass",
        "more arrivals|written",
    ),
    "producer waits for keys in place of values": (PRODUCE, "wait(v_empty", "wait(k_empty", "written|deadlock"),
    "no bytes expected": (PRODUCE, "mbarrier.expect(v_full.index(stage), V.block_type.nbytes)", "pass", "deadlock"),
    "too many bytes expected": (PRODUCE, "v_full.index(stage), V.block_type.nbytes", "v_full.index(stage), 1", "dead"),
    "copy lands elsewhere": (PRODUCE, "slot, 0], v_full", "slot, 0], k_full", "deadlock|read while"),
    "wrong phase of keys": (pipeline.begin_logits, "(index // STAGES) & 1", "index & 1", "deadlock|read"),
    "wrong phase of values": (pipeline.begin_sum, "(index // STAGES) & 1", "1 - (index // STAGES) & 1", "read|dead"),
    "keys are not waited for": (
        pipeline.begin_logits,
        "mbarrier.wait(k_full.index(stage), (index // STAGES) & 1)",
        "pass",
        "read",
    ),
    "missing arrival": (CONSUME, "mbarrier.arrive(v_empty.index((index - 1) % STAGES))", "pass", "deadlock"),
    "arrival at the wrong buffer": (CONSUME, "v_empty.index((index - 1) %", "v_empty.index(index %", "written|dead"),
    "arrival twice": (CONSUME, "mbarrier.arrive(k_empty.index(0))", "mbarrier.arrive(k_empty.index(0)); " * 2, "."),
    "arrival before the end of a product": (
        CONSUME,
        """acc = warpgroup_mma_wait(0, deps=(sums,))
            mbarrier.arrive(v_empty.index((index - 1) % STAGES))""",
        """mbarrier.arrive(v_empty.index((index - 1) % STAGES))
            acc = warpgroup_mma_wait(0, deps=(sums,))""",
        "written while",
    ),
    "logits before their end": (CONSUME, "mma_wait(1, deps=(product,))", "mma_wait(2, deps=(product,))", "waited"),
    "one consumer is enough": (ALLOCATE, "init(k_empty.index(stage), CONSUMERS)", "init(k_empty.index(stage), 1)", "."),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str) -> None:
    function, old, new, told = MISTAKES[mistake]
    with pytest.raises(ProtocolError, match=told):
        explore(program(7, 2, changed(function, old, new)))


FP8_PRODUCE, FP8_CONSUME = fp8_target_attention._produce, fp8_target_attention._consume
FP8_MISTAKES = {
    "scales are not expected": (FP8_PRODUCE, "K.block_type.nbytes + 2 *", "K.block_type.nbytes + 0 *", "deadlock|read"),
    "scales land with the values": (
        FP8_PRODUCE,
        "[page, head, slot], k_full.index(stage), v_",
        "[page, head, slot], v_full.index(stage), v_",
        ".",
    ),
    "scales of the values of the tile before": (
        FP8_CONSUME,
        "of_values = _scales_of(v_scales, index,",
        "of_values = _scales_of(v_scales, index - 1,",
        "twice|written anew|read",
    ),
    "scales are read before they came": (
        FP8_CONSUME,
        """product = begin_logits(queries, k, k_full, index, zeros, BLOCK_N, STAGES)""",
        """of_keys = _scales_of(k_scales, index, BLOCK_N, STAGES, columns)
            product = begin_logits(queries, k, k_full, index, zeros, BLOCK_N, STAGES)""",
        "read",
    ),
    "the queries are those of the other group": (
        FP8_CONSUME,
        "queries = q.index(GROUP)",
        "queries = q.index(0)",
        "use",
    ),
}


@pytest.mark.parametrize("mistake", FP8_MISTAKES)
def test_mistakes_with_float8_products_are_found(mistake: str) -> None:
    function, old, new, told = FP8_MISTAKES[mistake]
    with pytest.raises(ProtocolError, match=told):
        explore(fp8_program(7, 2, changed(function, old, new)))


READER = [Wait("full", 0), Read("k"), Done(("k",)), Arrive("empty")]
COPY = [Arrive("full", 8), Copy("k", "full", 8)]


@pytest.mark.parametrize(
    ("producer", "reader", "told"),
    [
        (COPY, READER, None),
        ([*COPY, Wait("empty", 0), *COPY], [*READER, Wait("full", 1), *READER[1:]], None),
        ([*COPY, *COPY], READER, "two copies|more arrivals"),
        ([], READER[1:], "before it was written"),
        (COPY, READER[1:], "read while it is written|before it was written"),
        ([*COPY, Wait("empty", 0), *COPY], READER, "in use at the end"),
        ([*COPY, Wait("empty", 1), *COPY], [*READER, Wait("full", 1), *READER[1:]], "written|two copies|more arrivals"),
        (COPY, [*READER[:2]], "in use at the end"),
        (COPY, [Wait("full", 1), *READER[1:]], "read"),
        ([*COPY, Wait("empty", 0)], READER[:3], "deadlock: producer: Wait"),
    ],
)
def test_the_rules(producer: list[Operation], reader: list[Operation], told: str | None) -> None:
    barriers = {"full": 1, "empty": 1}
    small = Program(barriers, {"producer": producer, "reader": reader}, sharers=1)
    if told is None:
        assert explore(small) > 1
    else:
        with pytest.raises(ProtocolError, match=told):
            explore(small)

"""States on small pages, on whole ones, and moved from small to whole ones are the same states to every backend."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from mfalcon.algorithm import Scoring, append, append_all, prefill, score_all
from mfalcon.backends.choice import REFERENCE, runnable
from mfalcon.backends.select import PoolBudget, ServedModel, reference, serve
from mfalcon.kvcache.block_pool import SMALL_PAGE_TOKENS
from mfalcon.kvcache.finite import finiteness
from mfalcon.kvcache.state import PAGE_TOKENS, KVShape, KVState, PlainLayout
from mfalcon.models.base import Targets
from mfalcon.models.checkpoint import Checkpoint
from tests.device import needs_interpreter
from tests.small import NOW_MS, random_events, small_checkpoint, small_config, some_rows, tokens

CPU = torch.device("cpu")
OUTGROWN = PAGE_TOKENS - SMALL_PAGE_TOKENS
"""Tokens up to which a state has small pages."""
EVENTS = random_events(200, seed=7)
BUDGET = PoolBudget(1 << 20, threads=1, longest=256, device_bytes=4 << 20)
ON_CPU = [
    (choice.name, dtype, kv_dtype)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for choice in runnable(CPU, dtype)
    for kv_dtype in ("auto", "int8")
    if (choice.name, kv_dtype) != (REFERENCE, "int8")
]
ON_DEVICE = [
    pytest.param("auto", marks=needs_interpreter),
    pytest.param("fp8-products", marks=needs_interpreter),
    pytest.param("int8", marks=[needs_interpreter, pytest.mark.thorough]),
    pytest.param("fp8", marks=[needs_interpreter, pytest.mark.thorough]),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""The laws'."""
CODES_TOLERANCE = 1e-2
"""Codes of numbers that differ by a rounding may be neighbours."""


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Rows that only fill up a shape hold anything: the interpreter complains, a GPU does not."""
    with np.errstate(all="ignore"):
        yield


def ranker(architecture: str = "dfgr", dtype: torch.dtype = torch.float32, num_layers: int = 2) -> Checkpoint:
    config = small_config(architecture, max_history=256, num_layers=num_layers)
    return small_checkpoint(architecture, dtype, config=config)


def targets() -> Targets:
    return Targets(some_rows(5), torch.tensor([1, 5]))


def scores(served: ServedModel, states: Sequence[KVState]) -> Tensor:
    return score_all(served, [Scoring(state, targets(), NOW_MS) for state in states], 16)


def prefilled(served: ServedModel, checkpoint: Checkpoint, num_events: int) -> KVState:
    return prefill(served, tokens(checkpoint, EVENTS[:num_events]))


@pytest.mark.parametrize(
    ("architecture", "backend", "dtype", "kv_dtype"),
    [
        *(("dfgr", *each) for each in ON_CPU),
        ("hstu", "auto", torch.float32, "auto"),
        ("hstu", "auto", torch.bfloat16, "auto"),
    ],
)
@torch.inference_mode()
def test_one_event_at_a_time_is_a_prefill_to_the_bit(
    architecture: str, backend: str, dtype: torch.dtype, kv_dtype: str
) -> None:
    """Through every small page, past the last one and past a whole page, and a state is moved once."""
    checkpoint = ranker(architecture, dtype)
    served = serve(checkpoint.model, backend, BUDGET, kv_dtype)
    per_event, accounts = served.model.tokens_per_event, served.pool.accounts
    num_events = 140 // per_event
    state, sizes, held = served.empty_state(), [], dict[int, KVState]()
    for index in range(num_events):
        state = append(served, state, tokens(checkpoint, EVENTS[index : index + 1]))
        size = SMALL_PAGE_TOKENS if state.num_tokens <= OUTGROWN else PAGE_TOKENS
        assert state.run.page_tokens == size and len(state.run.pages) == -(-state.num_tokens // size)
        assert state.num_bytes == len(state.run.pages) * size * served.pool.layout.page_bytes // PAGE_TOKENS
        sizes.append(size)
        if index + 1 in (1, SMALL_PAGE_TOKENS // per_event, OUTGROWN // per_event, OUTGROWN // per_event + 1, 70):
            held[index + 1] = state
    assert sizes == sorted(sizes) and len(set(sizes)) == 2
    held[num_events] = state
    for length, grown in held.items():
        whole = prefilled(served, checkpoint, length)
        assert torch.equal(grown.times, whole.times)
        for layer in range(served.pool.layout.shape.num_layers):
            for one, other in zip(grown.read(layer), whole.read(layer), strict=True):
                if served.name == REFERENCE:  # torch's products of other shapes round otherwise
                    assert (one - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()
                else:
                    assert torch.equal(one, other)
        if served.name != REFERENCE:
            assert torch.equal(scores(served, [grown]), scores(served, [whole]))
        del whole
    accounts.check_integrity([one.run for one in held.values()])


def check_batches(
    served: ServedModel, checkpoint: Checkpoint, lengths: Sequence[int], more: Sequence[int], bound: float
) -> Tensor:
    """Users on small pages beside users on whole ones and one without any: encoded, moved, scored, looked at, each as
    if it were alone. Returns the scores of all.
    """
    histories = [random_events(n + new, seed=n) for n, new in zip(lengths, more, strict=True)]
    cut = [(events[:n], events[n:]) for events, n in zip(histories, lengths, strict=True)]
    states = [served.empty_state()] * len(lengths)
    states = append_all(served, states, [tokens(checkpoint, first) for first, _ in cut])
    before = scores(served, states)
    longer = append_all(served, states, [tokens(checkpoint, delta) for _, delta in cut])
    for some in (states, longer):
        expected = [SMALL_PAGE_TOKENS if 0 < state.num_tokens <= OUTGROWN else PAGE_TOKENS for state in some]
        assert [state.run.page_tokens for state in some] == expected
    assert torch.equal(scores(served, states), before)  # no state that somebody holds changes
    assert finiteness(longer, list(lengths))() == [True] * len(lengths)
    served.pool.accounts.check_integrity([run for run in {state.run for state in (*states, *longer)}])
    found = scores(served, longer)
    alone = [scores(served, [prefill(served, tokens(checkpoint, events))]) for events in histories]
    assert (found - torch.cat(alone)).abs().max() <= bound
    return found


@pytest.mark.parametrize(("backend", "dtype", "kv_dtype"), ON_CPU)
@torch.inference_mode()
def test_batches_of_both_sizes(backend: str, dtype: torch.dtype, kv_dtype: str) -> None:
    checkpoint, lengths, more = ranker(dtype=dtype), (97, 20, 0, 130, 1, 95), (1, 1, 0, 3, 40, 2)
    bound = TOLERANCE[dtype] if kv_dtype == "auto" else CODES_TOLERANCE
    found = check_batches(serve(checkpoint.model, backend, BUDGET, kv_dtype), checkpoint, lengths, more, bound)
    oracle = reference(checkpoint.model)
    whole = [prefilled_of(oracle, checkpoint, n, new) for n, new in zip(lengths, more, strict=True)]
    assert (found - scores(oracle, whole)).abs().max() <= max(bound, 2 * TOLERANCE[dtype])


def prefilled_of(served: ServedModel, checkpoint: Checkpoint, length: int, more: int) -> KVState:
    return prefill(served, tokens(checkpoint, random_events(length + more, seed=length)))


@pytest.mark.parametrize("kv_dtype", ON_DEVICE)
@torch.inference_mode()
def test_batches_of_both_sizes_on_a_device(kv_dtype: str) -> None:
    checkpoint, lengths, more = ranker(num_layers=1), (97, 20, 0), (1, 1, 0)
    bound = TOLERANCE[torch.float32] if kv_dtype == "auto" else CODES_TOLERANCE
    check_batches(serve(checkpoint.model, "triton", BUDGET, kv_dtype), checkpoint, lengths, more, bound)


@needs_interpreter
@torch.inference_mode()
def test_replays_of_both_sizes() -> None:
    """Recorded for pages of either size, each over its own; a state is moved between them."""
    checkpoint = ranker(num_layers=1)
    served, oracle = serve(checkpoint.model, "triton", BUDGET), reference(checkpoint.model)
    served.stack.prepare(served.pool, 16)
    found, expected = list[Tensor](), list[Tensor]()
    for of, answers in ((served, found), (oracle, expected)):
        states = [prefilled(of, checkpoint, n) for n in (20, 96)]
        longer = append_all(of, states, [tokens(checkpoint, random_events(2, seed=n)) for n in range(2)])
        answers += [scores(of, [*longer, *states])]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= TOLERANCE[torch.float32]


@torch.inference_mode()
def test_a_shorter_state_shares_pages_and_goes_its_own_way() -> None:
    """As for a history that has diverged: what both have in common is computed once and held once."""
    checkpoint = ranker()
    served = serve(checkpoint.model, "auto", BUDGET)
    for length, common in ((200, 128), (200, 150), (200, 40), (90, 64), (90, 70), (97, 20)):
        state = prefilled(served, checkpoint, length)
        before, free = scores(served, [state]), served.pool.accounts.num_free_tokens
        shorter = state.first(common)
        assert served.pool.accounts.num_free_tokens == free
        assert shorter.run.pages == state.run.pages[: -(-common // state.run.page_tokens)]
        other = random_events(10, seed=8)
        branch = append(served, shorter, tokens(checkpoint, other))
        whole = append(served, prefilled(served, checkpoint, common), tokens(checkpoint, other))
        assert branch.run.page_tokens == whole.run.page_tokens  # by what it needs, whatever it began on
        assert torch.equal(scores(served, [branch]), scores(served, [whole]))
        assert torch.equal(scores(served, [state]), before)
        del branch, whole, shorter, state
        assert served.pool.accounts.num_free == served.pool.accounts.num_pages


def test_twenty_events_at_shape_s_hold_less_than_twice_their_content() -> None:
    """Three layers of width 256 in float32, 20 tokens: 6.4 times the content with pages of 128 alone."""
    layout = PlainLayout(KVShape(3, 4, 64, 64, torch.float32, CPU))
    content = 20 * layout.shape.bytes_per_token()
    assert layout.small is not None
    assert layout.small.page_bytes / content == 1.6 and layout.page_bytes / content == 6.4


@pytest.mark.parametrize("codes", [None, torch.int8])
@pytest.mark.parametrize(("heads", "dim"), [(1, 1), (1, 3), (3, 5), (4, 64)])
def test_small_pages_fill_a_page_or_there_are_none(heads: int, dim: int, codes: torch.dtype | None) -> None:
    layout = PlainLayout(KVShape(2, heads, dim, dim, torch.float32, CPU), codes=codes)
    if codes is not None and heads * dim % 2:
        assert layout.small is None  # blocks begin at multiples of 64 bytes
    else:
        assert layout.small is not None and 4 * layout.small.page_bytes == layout.page_bytes
    assert PlainLayout(layout.shape, 64).small is None and PlainLayout(layout.shape, 160).small is not None

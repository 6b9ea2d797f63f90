"""Laws 1 to 4 of M-FALCON, exact in float64, over lengths, microbatches, orders, duplicates and splits of the
history.
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import reference
from mfalcon.kvcache.state import KVState
from mfalcon.laws import masked_forward
from mfalcon.masked_attention import BatchPrefixAttention, BatchTargetAttention
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import prefix_rankers
from tests.small import NOW_MS, random_events, small_checkpoint, some_rows, tokens

BOUND = 1e-12  # float64: sums in another order, values of order 10
CHECKPOINTS = {name: small_checkpoint(name) for name in prefix_rankers()}
CONTEXT = torch.tensor([2, -1])

any_checkpoint = st.sampled_from(sorted(CHECKPOINTS)).map(lambda name: CHECKPOINTS[name])
lengths = st.one_of(st.sampled_from([0, 1, 63, 77]), st.integers(0, 150))
seeds = st.integers(0, 2**32 - 1)


def cached(checkpoint: Checkpoint, events: EventTokens, targets: Targets, microbatch: int = 16) -> Tensor:
    return score(reference(checkpoint.model), prefill(reference(checkpoint.model), events), targets, NOW_MS, microbatch)


def part(events: EventTokens, start: int, stop: int) -> EventTokens:
    return EventTokens(*(column[start:stop] for column in columns(events)))


def columns(events: EventTokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return events.rows, events.actions, events.values, events.times


def assert_close(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    if a.numel():
        assert float((a - b).abs().max()) <= BOUND


@settings(max_examples=25)
@given(any_checkpoint, lengths, st.integers(1, 9), seeds)
def test_law_1_cached_is_uncached(checkpoint: Checkpoint, length: int, num_targets: int, seed: int) -> None:
    events, targets = tokens(checkpoint, random_events(length, seed)), Targets(some_rows(num_targets, seed), CONTEXT)
    got = cached(checkpoint, events, targets)
    assert got.shape == (num_targets, 2)
    assert_close(got, masked_forward(checkpoint.model, events, targets, NOW_MS))
    alone = [
        masked_forward(checkpoint.model, events, Targets(row.unsqueeze(0), CONTEXT), NOW_MS) for row in targets.rows
    ]
    assert_close(got, torch.cat(alone))


@given(any_checkpoint, lengths, st.integers(1, 300), st.integers(1, 90), seeds)
def test_law_2_microbatches(checkpoint: Checkpoint, length: int, microbatch: int, num_targets: int, seed: int) -> None:
    events, targets = tokens(checkpoint, random_events(length, seed)), Targets(some_rows(num_targets, seed), CONTEXT)
    one = cached(checkpoint, events, targets, num_targets)
    assert_close(cached(checkpoint, events, targets, microbatch), one)


@given(any_checkpoint, lengths, st.integers(1, 90), st.data())
def test_law_2_orders_duplicates_and_removals(
    checkpoint: Checkpoint, length: int, num_targets: int, data: st.DataObject
) -> None:
    events, rows = tokens(checkpoint, random_events(length, length)), some_rows(num_targets, length)
    base = cached(checkpoint, events, Targets(rows, CONTEXT))
    chosen = torch.tensor(data.draw(st.lists(st.integers(0, num_targets - 1), min_size=1, max_size=120)))
    assert_close(cached(checkpoint, events, Targets(rows[chosen], CONTEXT)), base[chosen])


@given(any_checkpoint, lengths, st.data())
def test_law_3_append_is_prefill(checkpoint: Checkpoint, length: int, data: st.DataObject) -> None:
    assert checkpoint.model.prefix_stable
    events = tokens(checkpoint, random_events(length, length))
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=6)))
    whole, state = (
        prefill(reference(checkpoint.model), events),
        prefill(reference(checkpoint.model), part(events, 0, 0)),
    )
    for start, stop in pairwise((0, *cuts, length)):
        state = append(reference(checkpoint.model), state, part(events, start, stop))
    assert state.num_tokens == whole.num_tokens == length * checkpoint.prefix_model.tokens_per_event
    for layer in range(checkpoint.model.config.stack[1]):
        for mine, others in zip(state.read(layer), whole.read(layer), strict=True):
            assert_close(mine, others)
    targets = Targets(some_rows(13), CONTEXT)
    assert_close(
        score(reference(checkpoint.model), state, targets, NOW_MS, 5),
        score(reference(checkpoint.model), whole, targets, NOW_MS, 5),
    )


@settings(max_examples=25)
@given(any_checkpoint, st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 50), seeds)
def test_law_4_batch_mates_and_padding(
    checkpoint: Checkpoint, batch_lengths: list[int], more_padding: int, seed: int
) -> None:
    """The same layers over a padded batch, with garbage for padding, score every row as if it were alone."""
    model = checkpoint.prefix_model
    rows = [tokens(checkpoint, random_events(length, seed + i)) for i, length in enumerate(batch_lengths)]
    size = max(batch_lengths) + more_padding
    garbage = columns(tokens(checkpoint, random_events(size, seed + 99)))
    padded = EventTokens(
        *(
            torch.stack([torch.cat([column, fill[len(column) :]]) for column in by_row])
            for fill, *by_row in zip(garbage, *map(columns, rows), strict=True)
        )
    )
    lens = torch.tensor(batch_lengths)
    valid = (torch.arange(size) < lens.unsqueeze(1)).repeat_interleave(model.tokens_per_event, 1)
    targets = torch.stack([some_rows(7, seed + i) for i in range(len(rows))])
    many = Targets(targets, CONTEXT.expand(len(rows), 1, -1))
    prefix = BatchPrefixAttention(model.token_times(padded), valid)
    model.stack.encode(model.prefix_tokens(padded), prefix)
    visible = (lens * model.tokens_per_event).unsqueeze(1).expand(-1, 7)
    attend = BatchTargetAttention(prefix, visible, torch.full_like(visible, NOW_MS))
    together = model.scores(model.predict(model.stack(model.target_tokens(many), attend), many))
    for index, events in enumerate(rows):
        assert_close(together[index], cached(checkpoint, events, Targets(targets[index], CONTEXT)))


@pytest.mark.parametrize("name", prefix_rankers())
def test_no_candidates(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    events = tokens(checkpoint, random_events(5))
    assert cached(checkpoint, events, Targets(some_rows(0), CONTEXT)).shape == (0, 2)


@pytest.mark.parametrize("name", prefix_rankers())
def test_every_part_of_the_request_moves_the_score(name: str) -> None:
    """Or the laws above would hold of a model that reads nothing."""
    checkpoint = CHECKPOINTS[name]
    model, history, targets = checkpoint.model, random_events(20, 1), Targets(some_rows(9), CONTEXT)
    base = cached(checkpoint, tokens(checkpoint, history), targets)

    def moved(other: Tensor) -> bool:
        return bool(((other - base).abs() > 1e-6).any(1).all())

    for field, change in (("item_id", -5), ("actions", 7), ("value", 9.0)):
        edited = history.copy()
        edited[field][4] = change
        assert moved(cached(checkpoint, tokens(checkpoint, edited), targets)), field
    later = history.copy()
    later["time_ms"][10:] += 5 * 10**9
    assert moved(cached(checkpoint, tokens(checkpoint, later), targets))
    state = prefill(reference(model), tokens(checkpoint, history))
    assert moved(score(reference(model), state, targets, NOW_MS + 10**11, 16))
    assert moved(score(reference(model), state, replace(targets, context=torch.tensor([0, -1])), NOW_MS, 16))


def copies(state: KVState) -> list[Tensor]:
    layers = range(state.pool.layout.shape.num_layers)
    return [t.clone() for layer in layers for t in state.read(layer)] + [state.times.clone()]


@pytest.mark.parametrize("name", prefix_rankers())
def test_a_held_state_never_changes(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    model = checkpoint.model
    first, second, third = (tokens(checkpoint, random_events(n, n)) for n in (50, 3, 90))
    state = prefill(reference(model), first)
    before = copies(state)
    tip = append(reference(model), state, second)
    tip_before = copies(tip)
    fork = append(reference(model), state, third)
    append(reference(model), tip, third)
    score(reference(model), tip, Targets(some_rows(40), CONTEXT), NOW_MS, 7)
    assert all(torch.equal(a, b) for a, b in zip(before, copies(state), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tip_before, copies(tip), strict=True))
    targets = Targets(some_rows(9), CONTEXT)
    both = EventTokens(*(torch.cat(pair) for pair in zip(columns(first), columns(third), strict=True)))
    assert_close(score(reference(model), fork, targets, NOW_MS, 9), cached(checkpoint, both, targets))


@pytest.mark.parametrize("name", prefix_rankers())
def test_events_of_one_column_stride(name: str) -> None:
    """A history of one event is a view of the log in numpy; the state must not alias it."""
    checkpoint = CHECKPOINTS[name]
    events = random_events(1)
    state = prefill(reference(checkpoint.model), tokens(checkpoint, events))
    events["time_ms"] = np.int64(0)
    assert int(state.times[0]) > 0

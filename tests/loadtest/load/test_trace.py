"""The trace: the same for a seed, in order of time, with the gaps, the users and the histories that it promises."""

from collections import Counter
from itertools import pairwise, takewhile

import numpy as np
import pytest

from loadtest.load.trace import START_MS, Append, Delete, Edit, Rank, Step, TraceOptions, edited, time_ms, trace
from loadtest.load.visit_times import visit_times
from mfalcon.types import Events, no_events

MANY = TraceOptions(num_requests=3_000, num_actions=3, delete_share=0.02, edit_share=0.02)


def key(step: Step) -> tuple[object, ...]:
    """All of a step in a form that compares."""
    match step:
        case Rank():
            return "rank", step.time_s, step.user, step.candidates.tobytes()
        case Append():
            return "append", step.time_s, step.user, step.events.tobytes(), step.expected_len
        case Delete() | Edit():
            return (step,)


def test_a_seed_gives_the_same_steps_and_another_gives_others() -> None:
    first = [key(step) for step in trace(MANY)]
    assert first == [key(step) for step in trace(MANY)]
    other = TraceOptions(num_requests=3_000, num_actions=3, delete_share=0.02, edit_share=0.02, seed=1)
    assert first != [key(step) for step in trace(other)]


def test_a_shorter_trace_is_the_beginning_of_a_longer_one() -> None:
    longer = [key(step) for step in trace(TraceOptions(num_requests=200))]
    shorter = [key(step) for step in trace(TraceOptions(num_requests=50))]
    assert longer[: len(shorter)] == shorter
    seconds = 5_000.0
    timed = [key(step) for step in trace(TraceOptions(num_requests=10**9, seconds=seconds))]
    expected = takewhile(lambda step: step.time_s <= seconds, trace(TraceOptions(num_requests=10**9)))
    assert timed == [key(step) for step in expected]
    assert timed


def test_steps_are_in_order_and_fit_the_history_that_they_meet() -> None:
    histories: dict[int, Events] = {}
    kinds: Counter[type[Step]] = Counter()
    latest_s = 0.0
    for step in trace(MANY):
        kinds[type(step)] += 1
        assert step.time_s >= latest_s
        latest_s = step.time_s
        history = histories.get(step.user, no_events())
        match step:
            case Rank():
                assert step.user in histories  # the history of before comes first
                assert len(step.candidates) == MANY.num_candidates
                assert not step.candidates.flags.writeable
                assert all(history["time_ms"] <= time_ms(step.time_s))
            case Append():
                assert len(history) == step.expected_len
                assert not step.events.flags.writeable
                assert all(step.events["actions"] >= 1) and all(step.events["actions"] < 2**MANY.num_actions)
                histories[step.user] = np.concatenate([history, step.events])
                assert all(np.diff(histories[step.user]["time_ms"]) >= 0)
            case Delete():
                histories[step.user] = no_events()
            case Edit():
                changed = edited(history, step)
                same = np.arange(len(history)) != step.position
                assert changed[same].tobytes() == history[same].tobytes()
                assert changed["item_id"][step.position] == step.item_id
                histories[step.user] = changed
    assert kinds[Rank] == MANY.num_requests
    assert 0.5 < (kinds[Append] - len(histories)) / kinds[Rank] < 0.7
    for rare in (Delete, Edit):
        assert 0.01 < kinds[rare] / kinds[Rank] < 0.03


def test_half_of_the_visits_return_within_a_minute_and_three_quarters_within_ten() -> None:
    """Of the visits that the trace could still see return. Bounds: 4 deviations of a share of 7,000."""
    visits: dict[int, list[float]] = {}
    for step in trace(TraceOptions(num_requests=8_000, num_candidates=1, append_share=0)):
        if isinstance(step, Rank):
            visits.setdefault(step.user, []).append(step.time_s)
    end_s = max(times[-1] for times in visits.values())
    gaps = [
        then - now for times in visits.values() for now, then in pairwise([*times, float("inf")]) if now < end_s - 600
    ]
    assert len(gaps) > 7_000
    assert np.mean(np.array(gaps) < 60) == pytest.approx(0.5, abs=0.024)
    assert np.mean(np.array(gaps) < 600) == pytest.approx(0.75, abs=0.021)
    assert min(gaps) >= 1


def test_visits_follow_zipf() -> None:
    """A user of rank r comes 1 / r as often as the first; bursts come together, so the bound is wide."""
    span_s = 3e6
    counts = [
        sum(
            1 for _ in takewhile(lambda time_s: time_s < span_s, visit_times(np.random.default_rng(rank), rank, 1.0, 0))
        )
        for rank in (1, 2, 4, 8)
    ]
    for rank, count in zip((1, 2, 4, 8), counts, strict=True):
        assert count == pytest.approx(4 * span_s / 1200 / rank, rel=0.25)


def test_histories_of_before_are_log_uniform() -> None:
    options = TraceOptions(num_users=2_000, num_requests=20_000, num_candidates=1, append_share=0, zipf_exponent=0.2)
    lengths = [len(step.events) for step in trace(options) if isinstance(step, Append)]
    assert len(lengths) > 1_000
    assert options.min_history <= min(lengths) and max(lengths) <= options.max_history
    middle = (options.min_history * options.max_history) ** 0.5
    assert np.mean(np.array(lengths) < middle) == pytest.approx(0.5, abs=0.06)


def test_items_may_have_ids_of_their_own() -> None:
    items = np.array([-5, 7, 2**60])
    seen = set()
    for step in trace(TraceOptions(num_requests=50), items):
        if isinstance(step, Rank):
            seen |= set(step.candidates.tolist())
        elif isinstance(step, Append):
            seen |= set(step.events["item_id"].tolist())
    assert seen == set(items.tolist())


def test_time_is_logical() -> None:
    assert time_ms(0) == START_MS
    assert time_ms(1.5) == START_MS + 1_500

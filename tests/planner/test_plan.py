"""Choosing: under a budget, for a target, and what is said where there is nothing to choose."""

import math
from itertools import pairwise

import numpy as np
import pytest

from mfalcon.planner.grid import FITTED, HELD_OUT, Reach, RunRecord, Shape
from mfalcon.planner.latency import Memory
from mfalcon.planner.plan import Knowledge, Plan, make_plan, regret
from mfalcon.planner.report import curve_table, described, more_table, plan_lines, runs_table, trust_lines

REACH = Reach()
ENTROPY = {share: 0.7 for share in (1.0, 0.5, 0.25, 0.125)}
NUM_EVENTS = 80_000


def auc(shape: Shape, events: float) -> float:
    """Width and data help, a history up to a length, and layers hardly."""
    return 0.76 - 0.3 / shape.dim - 0.5 / shape.max_history - 250 / events + 0.0005 * math.log(shape.layers)


def record(shape: Shape) -> RunRecord:
    events = int(NUM_EVENTS * shape.users_share)
    noise = float(np.random.default_rng(len(shape.name) + shape.dim).normal(0, 0.0005))
    value = auc(shape, events) + noise
    return RunRecord(
        identity="",
        shape=shape,
        steps=5,
        seed=0,
        events=events,
        validation=value,
        test=value,
        seconds=1.0,
    )


def seconds_of(shape: Shape) -> float:
    return 1e-3 + 1e-6 * shape.layers * shape.dim * (1 + shape.max_history / 100)


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    return [record(shape) for shape in REACH.shapes((*FITTED, *HELD_OUT))]


@pytest.fixture(scope="module")
def knowledge(records: list[RunRecord]) -> Knowledge:
    return Knowledge(records, ENTROPY, REACH)


def planned(knowledge: Knowledge, budget_s: float, target: float | None = None, served: tuple[float, ...] = ()) -> Plan:
    """served: times by how much each measurement in turn is slower than predicted; as predicted after them."""
    times = iter(served)
    return make_plan(
        knowledge,
        REACH.space,
        seconds_of,
        budget_s,
        target,
        lambda shape: seconds_of(shape) * next(times, 1.0),
        lambda _: Memory(1_000, 52_000),
    )


def text(plan: Plan, budget_ms: float, target: float | None = None) -> str:
    return "\n".join(plan_lines(plan, budget_ms, 1_000, target))


@pytest.mark.parametrize("budget_ms", [1.05, 1.1, 1.2, 1.5, 5])
def test_the_choice_keeps_the_budget_and_is_nearly_the_best(knowledge: Knowledge, budget_ms: float) -> None:
    plan = planned(knowledge, budget_ms / 1e3)
    assert plan.chosen is not None
    assert plan.chosen.seconds <= budget_ms / 1e3
    best = max(auc(shape, NUM_EVENTS) for shape in REACH.space if seconds_of(shape) <= budget_ms / 1e3)
    assert auc(plan.chosen.shape, NUM_EVENTS) >= best - 0.003
    said = text(plan, budget_ms)
    assert described(plan.chosen.shape) in said
    assert "NOT kept" not in said


def test_a_target_takes_the_quickest_that_reaches_it(knowledge: Knowledge) -> None:
    wide, narrow = planned(knowledge, 1.0), planned(knowledge, 1.0, target=0.735)
    assert wide.chosen is not None
    assert narrow.chosen is not None
    assert narrow.chosen.auc.auc >= 0.735
    assert narrow.chosen.seconds < wide.chosen.seconds
    quicker = [shape for shape in REACH.space if seconds_of(shape) < narrow.chosen.seconds]
    assert all(knowledge.predict(shape).auc < 0.735 for shape in quicker)


def test_a_target_out_of_reach_says_how_much_data_it_would_need(knowledge: Knowledge) -> None:
    near, far = planned(knowledge, 1.0, target=0.757), planned(knowledge, 1.0, target=0.99)
    for plan in (near, far):
        assert plan.chosen is None
        assert plan.best is not None
    assert near.data_needed is not None
    assert near.data_needed > 1
    assert far.data_needed == math.inf
    assert "nothing within" in text(far, 1_000, 0.99)
    assert "no amount of data" in text(far, 1_000, 0.99)


def test_what_is_slower_than_predicted_gives_way(knowledge: Knowledge) -> None:
    as_predicted = planned(knowledge, 1.2e-3)
    slow = planned(knowledge, 1.2e-3, served=(2.0,))
    assert as_predicted.chosen is not None
    assert slow.chosen is not None
    assert slow.chosen.shape != as_predicted.chosen.shape
    assert [check.shape for check in slow.checks] == [as_predicted.chosen.shape, slow.chosen.shape]
    said = text(slow, 1.2)
    assert "NOT kept" in said
    assert "more than 15% off" in said


def test_a_budget_that_nothing_keeps(knowledge: Knowledge) -> None:
    for plan in (planned(knowledge, 1e-4), planned(knowledge, 1.2e-3, served=(2.0, 2.0, 2.0))):
        assert plan.chosen is None
        assert plan.best is None
        assert plan.memory is None
        assert not plan.more
    assert "the quickest" in text(planned(knowledge, 1e-4), 0.1)


def test_the_curve_rises(knowledge: Knowledge) -> None:
    curve = planned(knowledge, 1.0).curve
    assert all(a.seconds < b.seconds and a.auc.auc < b.auc.auc for a, b in pairwise(curve))
    assert max(knowledge.predict(shape).auc for shape in REACH.space) == curve[-1].auc.auc


def test_more_says_what_helps_and_what_is_beyond(knowledge: Knowledge) -> None:
    plan = planned(knowledge, 1.0)
    more = {each.what: each for each in plan.more}
    assert set(more) == {"layers", "width", "history", "data"}
    assert plan.best is not None
    assert more["data"].seconds == plan.best.seconds
    assert more["data"].is_beyond
    assert more["width"].is_beyond == (2 * plan.best.shape.dim > REACH.dim)
    assert more["data"].gain.auc > 0


def test_it_is_trusted_by_what_it_missed(knowledge: Knowledge, records: list[RunRecord]) -> None:
    trust = knowledge.trust
    assert trust.num_runs == len(records)
    assert trust.left_out < 0.006
    assert trust.held_out < 0.004
    assert trust.held_out < trust.plain_held_out
    assert 0 <= regret(records, knowledge, seconds_of) < 0.003
    [line] = trust_lines(trust, 0.001)
    assert f"{trust.left_out:.4f}" in line


def test_tables_have_a_row_each(knowledge: Knowledge, records: list[RunRecord]) -> None:
    plan = planned(knowledge, 1.0)
    assert runs_table(records).row_count == len(records)
    assert curve_table(plan).row_count == len(plan.curve)
    assert more_table(plan).row_count == 4

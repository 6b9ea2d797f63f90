"""An ensemble of real processes: whoever of its members is frozen, killed or overloaded, an answer comes by the budget
and is the offline merge of those that arrived, or an explicit error; and nobody has to bring a member back.
"""

from collections.abc import Iterator

import pytest
import torch

from loadtest.faults.members import FAULTS, Effort, MemberRow, MemberScene, measure
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

EFFORT = Effort(ranks=6, candidates=50, events=20, budget_ms=800, soak=600)
BUSY_MS = 20_000.0
"""A busy test machine is late itself, and a frozen process for ever; docs/merging.md has the figure of a quiet one."""
SOME_MIB = 24
FEW = 0.05
OVERLOADED = "one overloaded"
"""It and the soak keep processes busy for half of all the time that these tests take; both are for `make thorough`."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemberScene]:
    made = []
    for name, architecture, seed in (("a", "dfgr", 0), ("b", "hstu", 0), ("c", "dfgr", 2)):
        loaded = small_checkpoint(architecture, torch.float32, seed)
        made.append(tmp_path_factory.mktemp("members") / name)
        checkpoint.save(made[-1], loaded.model, loaded.items)
    with MemberScene(made, EFFORT) as scene:
        yield scene


@pytest.fixture(scope="module")
def rows(scene: MemberScene) -> dict[str, MemberRow]:
    return {row.fault: row for row in measure(scene, [fault for fault in FAULTS if fault != OVERLOADED])}


def test_no_answer_is_wrong_or_later_than_the_budget(rows: dict[str, MemberRow]) -> None:
    assert len(rows) == 6
    for row in rows.values():
        assert row.wrong == 0, row
        assert row.late_ms <= BUSY_MS, row


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("one frozen", {"late", "away"}),
        ("one killed", {"away"}),
        ("all but the server's own lost", {"late", "away"}),
    ],
)
def test_it_goes_on_without_who_is_lost_and_says_so(rows: dict[str, MemberRow], fault: str, words: set[str]) -> None:
    check_lost(rows[fault], words)


@pytest.mark.thorough
def test_it_goes_on_without_who_is_overloaded(scene: MemberScene) -> None:
    [row] = measure(scene, [OVERLOADED])
    assert row.wrong == 0 and row.late_ms <= BUSY_MS
    check_lost(row, {"late", "overloaded", "arrived"})


def check_lost(row: MemberRow, words: set[str]) -> None:
    assert not row.errors
    assert set(row.outcomes) <= words
    assert row.partial == row.ranks - row.outcomes.get("arrived", 0)
    assert row.outcomes.get("arrived", 0) < row.ranks


def test_nothing_is_missing_where_nothing_is_lost(rows: dict[str, MemberRow]) -> None:
    assert rows["none"].outcomes == {"arrived": EFFORT.ranks}
    assert rows["none"].partial == 0


@pytest.mark.parametrize("fault", ["all late", "fewer than needed"])
def test_too_few_are_an_explicit_error_that_another_replica_may_answer(rows: dict[str, MemberRow], fault: str) -> None:
    row = rows[fault]
    assert row.errors == {"UNAVAILABLE": row.ranks}


@pytest.mark.thorough
def test_a_frozen_member_uses_up_nothing(scene: MemberScene) -> None:
    with scene.frozen(scene.b):
        scene.observe("before", "b", ranks=5)
        descriptors, threads, kib = scene.held()
        row = scene.observe("soak", "b", ranks=EFFORT.soak)
        after = scene.held()
    assert row.wrong == 0
    assert sum(row.errors.values()) <= EFFORT.soak * FEW  # a busy machine may be late by itself
    assert row.outcomes.get("late", 0) <= EFFORT.soak * FEW  # it is not waited for
    assert after[0] <= descriptors + 4
    assert after[1] <= threads + 2
    assert after[2] <= kib + SOME_MIB * 1024
    assert scene.whole_again() < 5

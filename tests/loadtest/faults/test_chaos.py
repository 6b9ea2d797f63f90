"""Writes of unknown outcome are resolved, what nothing explains is a violation, and the oracle sees what is wrong."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from loadtest.faults.chaos_client import Records
from loadtest.faults.chaos_report import ChaosReport, report
from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.faults.replicas import Call
from loadtest.faults.resolve import LogViolation, Unresolved, Written, append_surely, delete_surely
from mfalcon.errors import CallFailed, HistoryMismatch
from mfalcon.types import Events
from tests.small import NOW_MS, cold_scores, random_events, rank_request, small_checkpoint

UNKNOWN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL")


class FakeLog:
    """A log behind a network: each call follows the next word of a script, and the last word for ever.

    ok: done and answered. lost: not done, no answer. done: done, no answer. twice: done two times and answered.
    dropped: answered and not done. Any other word is a status with which nothing is done.
    """

    def __init__(self, *script: str, size: int = 0, code: str = "UNAVAILABLE") -> None:
        self.size = size
        self.calls = 0
        self._script = script
        self._code = code

    def append_events(self, user_id: str, events: Events, expected_len: int, times: int) -> list[int | CallFailed]:
        outcomes: list[int | CallFailed] = []
        for _ in range(times):
            try:
                outcomes.append(self._append(events, expected_len))
            except CallFailed as failure:
                outcomes.append(failure)
        return outcomes

    def _append(self, events: Events, expected_len: int) -> int:
        word = self._next()
        if word == "lost":
            raise CallFailed(self._code, "nobody knows")
        if word not in ("ok", "done", "twice", "dropped"):
            raise CallFailed(word, "refused")
        if expected_len != self.size:
            raise CallFailed("FAILED_PRECONDITION", str(HistoryMismatch.of_len(expected_len, self.size, bytes(16))))
        self.size += {"twice": 2, "dropped": 0}.get(word, 1) * len(events)
        if word == "done":
            raise CallFailed(self._code, "nobody knows")
        return expected_len + len(events) if word == "dropped" else self.size

    def delete_user(self, user_id: str, meanwhile: Callable[[], object]) -> None:
        meanwhile()
        word = self._next()
        if word in ("ok", "done"):
            self.size = 0
        if word != "ok":
            raise CallFailed(self._code if word in ("lost", "done") else word, "no answer")

    def _next(self) -> str:
        word = self._script[min(self.calls, len(self._script) - 1)]
        self.calls += 1
        return word


def always() -> bool:
    return True


def append(log: FakeLog, expected_len: int = 10, num_events: int = 3, times: int = 1) -> Written:
    return append_surely(log, "u", random_events(num_events), expected_len, always, times)


@pytest.mark.parametrize(
    ("script", "written", "calls"),
    [
        (("ok",), Written.AT_ONCE, 1),
        (("lost", "ok"), Written.REPEATED, 2),
        (("lost", "lost", "lost", "ok"), Written.REPEATED, 4),
        (("done", "ok"), Written.FOUND, 2),
        (("lost", "done", "lost", "ok"), Written.FOUND, 4),
        (("RESOURCE_EXHAUSTED", "ok"), Written.AT_ONCE, 2),
        (("done", "RESOURCE_EXHAUSTED", "ok"), Written.FOUND, 3),
    ],
)
@pytest.mark.parametrize("code", UNKNOWN)
def test_an_append_is_written_once_whatever_becomes_of_its_answers(
    script: Sequence[str], written: Written, calls: int, code: str
) -> None:
    log = FakeLog(*script, size=10, code=code)
    assert append(log) is written
    assert (log.size, log.calls) == (13, calls)


@pytest.mark.parametrize(
    ("script", "written"),
    [
        (("ok",), Written.AT_ONCE),
        (("lost", "ok"), Written.AT_ONCE),
        (("done", "ok"), Written.FOUND),
        (("RESOURCE_EXHAUSTED", "ok"), Written.AT_ONCE),
        (("lost", "lost", "ok"), Written.REPEATED),
        (("done", "lost", "ok"), Written.FOUND),
    ],
)
def test_of_appends_that_race_one_is_written(script: Sequence[str], written: Written) -> None:
    log = FakeLog(*script, size=10)
    assert append(log, times=2) is written
    assert log.size == 13


def test_two_winners_of_a_race_are_a_violation() -> None:
    with pytest.raises(LogViolation, match="raced for 10 events all won"):
        append(FakeLog("dropped", size=10), times=2)  # each is told that its events are there
    with pytest.raises(LogViolation, match="no other attempt"):
        append(FakeLog("ok", size=13), times=2)


def test_a_lost_event_is_a_violation() -> None:
    with pytest.raises(LogViolation, match="the history has 9 events"):
        append(FakeLog("ok", size=9))
    with pytest.raises(LogViolation, match="the history has 9 events"):
        append(FakeLog("lost", "ok", size=9))
    log = FakeLog("dropped", "ok", size=10)
    append(log)
    with pytest.raises(LogViolation, match="the history has 10 events"):
        append(log, expected_len=13)


def test_an_event_too_many_is_a_violation() -> None:
    with pytest.raises(LogViolation, match="made 16, must be 13"):
        append(FakeLog("twice", size=10))
    with pytest.raises(LogViolation, match="the history has 11 events"):
        append(FakeLog("lost", "ok", size=11))


def test_the_wanted_length_explains_nothing_without_an_attempt_of_unknown_outcome() -> None:
    with pytest.raises(LogViolation, match="no other attempt"):
        append(FakeLog("ok", size=13))
    with pytest.raises(LogViolation, match="no other attempt"):
        append(FakeLog("RESOURCE_EXHAUSTED", "ok", size=13))


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"])
def test_a_status_that_no_fault_explains_is_a_violation(code: str) -> None:
    with pytest.raises(LogViolation, match=code):
        append(FakeLog(code, size=10))
    with pytest.raises(LogViolation, match=code):
        delete_surely(FakeLog(code), "u", always)


def test_a_refusal_without_a_length_is_a_violation() -> None:
    with pytest.raises(LogViolation, match="refused"):
        append(FakeLog("lost", "FAILED_PRECONDITION", size=10))


def test_attempts_end_when_there_is_no_time_left() -> None:
    left = iter([True, True, False])
    log = FakeLog("lost", size=10)
    with pytest.raises(Unresolved):
        append_surely(log, "u", random_events(1), 10, lambda: next(left))
    assert log.calls == 3
    left = iter([False])
    with pytest.raises(Unresolved):
        delete_surely(FakeLog("done"), "u", lambda: next(left))


@pytest.mark.parametrize("script", [("ok",), ("lost", "ok"), ("done", "ok"), ("done", "RESOURCE_EXHAUSTED", "ok")])
def test_a_delete_is_repeated_until_it_is_acknowledged(script: Sequence[str]) -> None:
    log = FakeLog(*script, size=5)
    sizes: list[int] = []
    delete_surely(log, "u", always, lambda: sizes.append(log.size))
    assert (log.size, log.calls) == (0, len(script))
    assert sizes[0] == 5 and len(sizes) == len(script)


CHECKPOINT = small_checkpoint()
CANDIDATES = [int(item) for item in CHECKPOINT.items.item_id[:9]]


def life_of(*parts: Events) -> Life:
    life = Life()
    for part in parts:
        life.add(part)
    return life


def answer(life: Life, length: int, error: float = 0.0) -> Answer:
    """What a server that saw the first `length` events would say, wrong by `error` in one score."""
    request = rank_request("u", CANDIDATES)
    request = type(request)("u", request.candidates, 0, NOW_MS, request.recent_events, {})
    scores = cold_scores(CHECKPOINT, life.events()[:length], request).numpy().astype(np.float32)
    scores[0, 3] += error
    return Answer(f"u on replica, {length}", life, length, NOW_MS, request.candidates, scores)


def test_the_oracle_computes_what_a_forward_from_nothing_does() -> None:
    events = random_events(60)
    lives = [life_of(events[:16], events[16:]), life_of(events[20:]), Life()]
    right = [
        answer(lives[0], 16),
        answer(lives[0], 16),
        answer(lives[0], 60),
        answer(lives[1], 40),
        answer(lives[2], 0),
    ]
    wrong = [answer(lives[0], 60, error=2e-4), answer(lives[1], 40, error=float("nan"))]
    errors = score_errors(CHECKPOINT, [*right, *wrong], threads=2)
    assert len(errors) == 7
    assert max(errors[good] for good in right) < 1e-6  # float32 of a float64 score below 8
    assert errors[wrong[0]] == pytest.approx(2e-4, rel=1e-2)
    assert errors[wrong[1]] == float("inf")


def test_the_oracle_sees_a_request_s_own_events_behind_the_history() -> None:
    events = random_events(20)
    whole = answer(life_of(events), 20)
    parts = Answer("", life_of(events[:17]), 17, NOW_MS, whole.candidates, whole.task_scores, events[17:])
    without = Answer("", life_of(events[:17]), 17, NOW_MS, whole.candidates, whole.task_scores)
    errors = score_errors(CHECKPOINT, [parts, without], threads=1)
    assert errors[parts] < 1e-6 and errors[without] > 10 * BOUND


def test_an_outdated_history_is_further_away_than_the_bound() -> None:
    """One event too few must be seen, or the run proves nothing."""
    life = life_of(random_events(20))
    stale = answer(life, 19)
    claims = Answer("", life, 20, NOW_MS, stale.candidates, stale.task_scores)
    assert score_errors(CHECKPOINT, [claims], threads=1)[claims] > 10 * BOUND


def summary(records: Records, **changes: object) -> ChaosReport:
    settings: dict[str, object] = {
        "seconds": 1.0,
        "deadline_s": 1.0,
        "stall_s": 0.0,
        "num_final": 0,
        "faults": {},
        "exited": (),
    }
    return report([records], dict.fromkeys(records.answers, 0.0), **(settings | changes))  # type: ignore[arg-type]


def good_records() -> Records:
    records = Records(answers=[answer(life_of(random_events(4)), 4)], lengths=[4])
    records.calls.sent = 2
    records.calls.ended = [Call("Rank", "OK", 0.01), Call("Rank", "DEADLINE_EXCEEDED", 1.02)]
    return records


def test_a_good_run_holds() -> None:
    found = summary(good_records())
    assert found.holds
    assert (found.checked, found.requests, found.late) == (1, 2, 0)
    assert found.statuses == {"Rank DEADLINE_EXCEEDED": 1, "Rank OK": 1}
    assert not found.complaints


def test_times_are_those_of_the_trace_and_violations_those_of_all_calls() -> None:
    records = good_records()
    records.last_calls.sent = 2
    records.last_calls.ended = [Call("Rank", "OK", 1.5)]
    found = summary(records)
    assert (found.max_ms, found.requests) == (10, 4)
    assert (found.unanswered, found.late) == (1, 1)


def test_a_run_that_checked_nothing_does_not_hold() -> None:
    assert not summary(Records()).holds


def test_every_violation_breaks_the_run() -> None:
    length, late, missing, unexpected, stale, lost = (good_records() for _ in range(6))
    length.lengths = [3]
    late.calls.ended[1] = Call("Rank", "DEADLINE_EXCEEDED", 1.06)
    missing.calls.sent = 3
    unexpected.calls.ended[0] = Call("Rank", "INTERNAL", 0.01)
    stale.stale = 1
    lost.lost = ["u: an append ..."]
    away = good_records()
    away.calls.ended[1] = Call("Rank", "UNAVAILABLE", 0.01)
    assert (summary(away).unexpected, summary(away, faults={"kill_redis": 1}).unexpected) == (1, 0)
    assert not summary(length).holds
    assert summary(length).complaints == ("u on replica, 4: history_len 3, acknowledged are 4",)
    assert (summary(late).late, summary(late).holds) == (1, False)
    assert (summary(missing).unanswered, summary(missing).holds) == (1, False)
    assert (summary(unexpected).unexpected, summary(unexpected).holds) == (1, False)
    assert (summary(stale).stale, summary(stale).holds) == (1, False)
    assert (summary(lost).lost, summary(lost).holds) == (1, False)
    assert not summary(good_records(), exited=["the server on x exited with 1"]).holds

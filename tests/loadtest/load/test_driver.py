"""Every end that a request can have, on a clock that jumps: what the driver writes into the ledger, and its times."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from loadtest.load.driver import Driver, Limits, Stream
from loadtest.load.ledger import Ledger, Outcome
from loadtest.load.load_result import ClassReport, Run, class_report, lag_ms, warnings_of
from loadtest.load.own_users import OwnUsers
from loadtest.load.prepare import Prepared
from loadtest.load.target import Scored, ServedModel
from loadtest.load.traffic import Traffic
from mfalcon.errors import CallFailed
from mfalcon.types import NO_SCORE, Events, Ids
from tests.loadtest.load.virtual_time import in_virtual_time, virtual_loop

ORACLE = Scored(np.array([0.25, 0.5], dtype=np.float32), 0, 0, "v")
DEADLINE_S = 0.1
Answering = Callable[[], Awaitable[Scored]]


class ScriptedTarget:
    """Satisfies `Target`: the n-th rank is answered by the n-th entry, the last one again and again."""

    def __init__(self, *script: Answering) -> None:
        self.script = script
        self.timeouts: list[float | None] = []
        self.users: set[str] = set()
        self.deleted: set[str] = set()
        self.refuses_appends = False
        self.refuses_deletes = False

    def rank_body(self, candidates: Ids, request_time_ms: int) -> bytes:
        return b""

    def append_body(self, events: Events) -> bytes:
        return b""

    async def model(self) -> ServedModel:
        return ServedModel("scripted", "v", "cpu float32", 0, 1)

    async def rank(self, user_id: str, body: bytes, timeout_s: float | None) -> Scored:
        self.timeouts.append(timeout_s)
        return await self.script[min(len(self.timeouts), len(self.script)) - 1]()

    async def append(self, user_id: str, body: bytes) -> None:
        self.users.add(user_id)
        if self.refuses_appends:
            raise CallFailed("UNAVAILABLE", "no")

    async def delete(self, user_id: str) -> None:
        if self.refuses_deletes:
            raise CallFailed("UNAVAILABLE", "no")
        self.deleted.add(user_id)

    async def close(self) -> None:
        pass


def scores(values: Sequence[float] = (0.25, 0.5), after_s: float = 0.01, *, encoded: int = 0) -> Answering:
    """Answers these, so late."""

    async def answer() -> Scored:
        await asyncio.sleep(after_s)
        return Scored(np.array(values, dtype=np.float32), encoded, 0, "v")

    return answer


def fails(code: str, after_s: float = 0.01) -> Answering:
    async def answer() -> Scored:
        await asyncio.sleep(after_s)
        raise CallFailed(code, "no")

    return answer


def stalls(seconds: float) -> Answering:
    """Holds up the driver's own loop, then answers."""

    async def answer() -> Scored:
        virtual_loop().stall(seconds)
        return ORACLE

    return answer


def drive(
    target: ScriptedTarget, traffic: Traffic, seconds: float = 1.0, stop_at: float | None = None, *, checks: bool = True
) -> tuple[ClassReport, Ledger]:
    """A run; its report and its ledger."""
    prepared = [Prepared(f"user-{number}", (b"",), b"", ORACLE) for number in range(3)]

    async def run() -> tuple[ClassReport, Ledger]:
        stream, stop = Stream(traffic, prepared, checks), asyncio.Event()
        if stop_at is not None:
            asyncio.get_running_loop().call_later(stop_at, stop.set)
        async with OwnUsers(target) as users:
            driver = Driver(target, users, Limits(patience_s=0.5, in_flight=50), np.random.default_rng(0))
            took = await driver.run([stream], seconds, stop)
            assert driver.in_flight == 0
        return class_report(traffic, stream.ledger, took), stream.ledger

    return in_virtual_time(run())


def open_loop(rate: float = 50.0, deadline_ms: int = int(DEADLINE_S * 1e3), cancel_share: float = 0.0) -> Traffic:
    return Traffic(rate=rate, candidates=2, deadline_ms=deadline_ms, cancel_share=cancel_share)


def test_an_open_loop_sends_at_its_times_whatever_becomes_of_the_requests() -> None:
    report, ledger = drive(ScriptedTarget(scores(after_s=0.09)), open_loop())
    assert report.sent == report.right == report.checked > 30
    assert report.goodput == report.offered == pytest.approx(50, rel=0.5)
    gaps = np.diff([entry.intended for entry in ledger])
    assert 0.5 < gaps.std() / gaps.mean() < 1.6  # exponential: 1
    assert report.answered is not None
    assert report.answered.p50_ms == pytest.approx(90, abs=0.01) == report.answered.max_ms
    assert lag_ms([ledger])[1] < 0.01
    assert report.adds_up and report.lost_nothing and report.encoded == 0


@pytest.mark.parametrize(
    ("answering", "outcome"),
    [
        (scores(), Outcome.RIGHT),
        (scores(after_s=DEADLINE_S + 0.019), Outcome.RIGHT),
        (scores(after_s=DEADLINE_S + 0.021), Outcome.LATE),
        (fails("RESOURCE_EXHAUSTED"), Outcome.ERROR),
        (fails("UNAVAILABLE", after_s=DEADLINE_S + 0.021), Outcome.LATE),
        (scores(after_s=60), Outcome.NEVER),
        (scores((0.25,)), Outcome.WRONG),
        (scores((0.25, float("nan"))), Outcome.WRONG),
        (scores((NO_SCORE, 0.5)), Outcome.WRONG),
        (scores((0.25, 0.5001)), Outcome.WRONG),
        (scores((0.25, 0.500001)), Outcome.RIGHT),
    ],
)
def test_every_request_has_one_end(answering: Answering, outcome: Outcome) -> None:
    report, ledger = drive(ScriptedTarget(answering), open_loop())
    assert {entry.outcome for entry in ledger} == {outcome}
    assert ledger.counts[outcome] == len(ledger) == report.sent > 0
    assert ledger.counts[Outcome.OPEN] == 0
    assert report.adds_up


def test_the_sums_of_a_mix_add_up() -> None:
    script = (scores(), fails("RESOURCE_EXHAUSTED"), scores((9, 9)), scores(after_s=60), scores(after_s=0.2), scores())
    report, _ = drive(ScriptedTarget(*script), open_loop())
    assert (report.errors, report.wrong, report.never, report.late) == ({"RESOURCE_EXHAUSTED": 1}, 1, 1, 1)
    assert report.sent == report.right + 4
    assert report.adds_up and not report.lost_nothing
    assert report.by_error["RESOURCE_EXHAUSTED"].num == 1
    assert report.latest_ms == pytest.approx(100, abs=0.01)
    assert report.worst_gap == pytest.approx(8.75)
    assert report.goodput < report.offered


def test_what_is_right_but_after_the_deadline_is_no_goodput() -> None:
    report, _ = drive(ScriptedTarget(scores(after_s=DEADLINE_S + 0.01)), open_loop())
    assert report.right == report.sent
    assert report.goodput == 0


def test_the_timeout_that_the_server_is_told_counts_from_the_intended_time() -> None:
    target = ScriptedTarget(stalls(0.06), scores())
    _, ledger = drive(target, open_loop(rate=200))
    sent = [entry for entry in ledger if entry.sent is not None]
    told = [entry.intended + DEADLINE_S - (entry.sent or 0.0) for entry in sent]
    assert target.timeouts == pytest.approx(told)
    assert min(told) < 0.06


def test_a_stall_of_the_driver_is_in_the_latencies_and_in_its_lag() -> None:
    report, ledger = drive(ScriptedTarget(stalls(0.3), scores(after_s=0)), open_loop(deadline_ms=0))
    _, worst_ms = lag_ms([ledger])
    assert worst_ms > 200
    assert report.answered is not None
    assert report.answered.max_ms > 200  # of requests that the server answered at once
    assert report.right == report.sent


def test_what_the_driver_comes_too_late_to_is_not_sent_and_not_forgotten() -> None:
    target = ScriptedTarget(stalls(0.5), scores())
    report, ledger = drive(target, open_loop())
    assert report.unsent > 5
    assert report.unsent == report.sent - len(target.timeouts)
    assert report.adds_up
    assert all(entry.sent is None for entry in ledger if entry.outcome is Outcome.UNSENT)


def test_requests_under_way_are_bounded() -> None:
    report, _ = drive(ScriptedTarget(scores(after_s=30)), open_loop(rate=200, deadline_ms=0))
    assert report.unsent > 0
    assert report.right == 50


def test_a_share_is_cancelled_at_random_times_within_the_deadline() -> None:
    report, ledger = drive(ScriptedTarget(scores(after_s=DEADLINE_S)), open_loop(rate=500, cancel_share=0.5))
    assert report.cancelled / report.sent == pytest.approx(0.5, abs=0.12)
    assert report.right + report.cancelled + report.unsent == report.sent
    after = [entry.ended - entry.intended for entry in ledger if entry.outcome is Outcome.CANCELLED and entry.ended]
    assert 0 < min(after) < DEADLINE_S / 3 and DEADLINE_S * 2 / 3 < max(after) <= DEADLINE_S


def test_an_answer_before_the_cancel_counts_as_one() -> None:
    report, _ = drive(ScriptedTarget(scores(after_s=0)), open_loop(cancel_share=1.0))
    assert report.right == report.sent


def test_clients_of_a_closed_loop_ask_one_after_the_other() -> None:
    report, ledger = drive(ScriptedTarget(scores(after_s=0.05)), Traffic(clients=2, candidates=2))
    assert report.right == report.sent
    assert 38 <= report.sent <= 42
    assert report.goodput == pytest.approx(40, abs=0.1)
    assert all(entry.sent == entry.intended for entry in ledger)


def test_a_client_pauses_between_its_requests() -> None:
    report, _ = drive(ScriptedTarget(scores(after_s=0.05)), Traffic(clients=2, candidates=2, pause_ms=150))
    assert 10 <= report.sent <= 12


def test_a_pause_ends_with_the_run() -> None:
    report, _ = drive(ScriptedTarget(scores()), Traffic(clients=1, candidates=2, pause_ms=600_000), stop_at=0.5)
    assert report.right == report.sent == 1


def test_a_refused_client_pauses() -> None:
    report, _ = drive(ScriptedTarget(fails("RESOURCE_EXHAUSTED", after_s=0)), Traffic(clients=1, candidates=2))
    assert 9 <= report.errors["RESOURCE_EXHAUSTED"] <= 11


def test_cold_requests_are_for_new_users_who_are_deleted() -> None:
    target = ScriptedTarget(scores(after_s=0.05, encoded=7))
    report, _ = drive(target, Traffic(clients=2, candidates=2, cold_share=1))
    assert report.right == report.encoded == len(target.users) >= 38
    assert target.deleted == target.users


def test_cold_requests_of_an_open_loop_are_for_users_who_were_made_before_it() -> None:
    target = ScriptedTarget(scores(encoded=7))
    report, ledger = drive(target, Traffic(rate=100, candidates=2, cold_share=0.5), seconds=4.0)
    assert report.right == report.sent > 300
    assert len(target.users) == pytest.approx(report.sent / 2, rel=0.2)
    assert target.users == target.deleted
    assert lag_ms([ledger])[1] < 0.01


def test_a_run_that_is_stopped_deletes_the_users_that_it_did_not_come_to() -> None:
    target = ScriptedTarget(scores())
    report, _ = drive(target, Traffic(rate=100, candidates=2, cold_share=1), seconds=4.0, stop_at=0.5)
    assert report.sent < 100 < len(target.users)
    assert target.users == target.deleted


def test_an_append_that_is_refused_is_an_error_of_its_request() -> None:
    target = ScriptedTarget(scores())
    target.refuses_appends = True
    report, _ = drive(target, Traffic(clients=1, candidates=2, cold_share=1))
    assert report.errors == {"append: UNAVAILABLE": report.sent}
    assert target.deleted == target.users


def test_a_run_ends_when_it_is_asked_to() -> None:
    report, _ = drive(ScriptedTarget(scores()), open_loop(), seconds=1_000, stop_at=2.0)
    assert 50 < report.sent < 200
    assert report.adds_up
    assert report.offered == pytest.approx(50, rel=0.5)


def test_a_second_end_of_a_request_is_counted_and_changes_nothing() -> None:
    ledger = Ledger()
    number = ledger.issue(0.0)
    ledger.settle(number, Outcome.RIGHT, 0.1)
    ledger.settle(number, Outcome.WRONG, 0.2)
    report = class_report(open_loop(), ledger, 1.0)
    assert (report.right, report.wrong, report.settled_twice) == (1, 0, 1)
    assert not report.adds_up


def test_a_request_without_an_end_does_not_add_up() -> None:
    ledger = Ledger()
    ledger.issue(0.0)
    assert not class_report(open_loop(), ledger, 1.0).adds_up


def test_users_whom_the_server_does_not_delete_are_named_and_not_waited_for_for_ever() -> None:
    target = ScriptedTarget()
    target.refuses_deletes = True

    async def some() -> tuple[OwnUsers, list[str], float]:
        began = asyncio.get_running_loop().time()
        async with OwnUsers(target, give_up_s=30) as users:
            names = [await users.create([b""]) for _ in range(20)]
        return users, names, asyncio.get_running_loop().time() - began

    users, names, took = in_virtual_time(some())
    assert sorted(names) == list(users.undeleted)
    assert took == pytest.approx(30)
    assert f"20 users could not be deleted, {users.undeleted[0]}" in "".join(warnings_of([], 0.0, users.undeleted))


@pytest.mark.parametrize(
    ("worst_ms", "answer_ms", "unsent", "late"),
    [(9.0, 1.0, 0, False), (11.0, 20.0, 0, True), (11.0, 100.0, 0, False), (26.0, 100.0, 0, True), (0.0, 1.0, 1, True)],
)
def test_the_driver_is_the_bottleneck_where_its_lateness_is_much_of_what_it_measures(
    worst_ms: float, answer_ms: float, unsent: int, late: bool
) -> None:
    ledger = Ledger()
    ledger.settle(ledger.issue(0.0), Outcome.RIGHT, answer_ms / 1e3)
    for _ in range(unsent):
        ledger.settle(ledger.issue(0.0), Outcome.UNSENT, 1.0)
    run = Run(1.0, False, worst_ms, worst_ms, 0.1, (class_report(open_loop(), ledger, 1.0),))
    assert run.driver_was_late == late
    assert any("the driver was the bottleneck" in text for text in warnings_of([run], 0.0, ())) == late

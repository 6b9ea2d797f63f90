"""The schedule: order, priorities, batches, what is refused; every job goes to exactly one taker."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

import mfalcon.engine.scheduler
from mfalcon.engine.job import CallJob, Forecast, RankJob, prefill_job
from mfalcon.engine.scheduler import LONG_SHARE, Scheduler, Turn
from mfalcon.errors import Overloaded, ShuttingDown
from mfalcon.history.history import no_history
from mfalcon.kvcache.fetch import Fetched
from mfalcon.load import Load
from mfalcon.types import CacheInfo, CacheSource, RankResult, Timings

SLICE_S = 0.01
began = [0.0]
ANSWER = RankResult(
    *(None, (), None, None, "", CacheInfo(CacheSource.NONE, 0, 0), Timings(0, 0, 0, 0, 0), 0, None),  # type: ignore[arg-type]
)


@pytest.fixture(autouse=True)
def begin() -> None:
    began[0] = time.monotonic()


def job(
    name: str = "ann", due: float | None = None, seconds: float = 0.001, batch: object = None, twin: object = None
) -> RankJob:
    """due: seconds from the start of the test."""
    one = prefill_job(Fetched(no_history(name)), None if due is None else began[0] + due)
    one.forecast = Forecast(seconds, batch, twin)
    return one


def partial_job(name: str, due: float, seconds: float, least_s: float) -> RankJob:
    """A job that may be answered with what takes `least_s`."""
    one = job(name, due)
    one.forecast = Forecast(seconds, least_s=least_s)
    one.request = replace(one.request, allow_partial=True)
    return one


def scheduler_of(*jobs: RankJob, queue_size: int = 1_000, slice_s: float = SLICE_S) -> Scheduler:
    scheduler = Scheduler(queue_size, slice_s)
    for _ in range(200):  # steps that take what is predicted
        scheduler.pace.observe(0.001, 0.001)
    for one in jobs:
        scheduler.submit(one)
    return scheduler


def turn(scheduler: Scheduler, most: int = 1, seconds: float = 1.0) -> list[RankJob]:
    """What is done next, and answered."""
    jobs = list(scheduler.next_turn(most, seconds).jobs)
    for one in jobs:
        one.future.set_result(ANSWER)
    predicted = sum(one.left_s for one in jobs)
    assert scheduler.did(jobs, predicted, predicted) == []
    return jobs


def users(jobs: Sequence[RankJob]) -> list[str]:
    return [one.fetched_history.history.user_id for one in jobs]


def test_the_earliest_deadline_goes_first_and_equal_ones_in_the_order_in_which_they_came() -> None:
    given = [job("a"), job("b", 900), job("c", 500), job("d"), job("e", 500)]
    scheduler = scheduler_of(*given)
    assert len(scheduler) == 5
    assert [users(turn(scheduler)) for _ in given] == [["c"], ["e"], ["b"], ["a"], ["d"]]
    assert len(scheduler) == 0


def test_what_others_wait_for_goes_as_if_it_were_due_earlier_and_is_never_late_for_that() -> None:
    """A stage behind needs half a second of the one that is due later; nobody is refused to save it that."""
    first, second = job("ann", due=1.0), job("bob", due=1.2)
    second.reserve_s = 0.5
    assert second.due == began[0] + 1.2 and second.wanted_by == pytest.approx(began[0] + 0.7)
    scheduler = scheduler_of(first, second)
    scheduler.submit(third := job("eve", due=0.9, seconds=0.6))
    assert [turn(scheduler) for _ in range(3)] == [[second], [first], [third]]


def test_what_may_be_partial_is_cut_while_the_stages_behind_have_their_time() -> None:
    one = partial_job("ann", due=1.0, seconds=0.5, least_s=0.1)
    usual = one.cut_at
    one.reserve_s = 0.25
    assert one.cut_at == pytest.approx(usual - 0.25)


def test_short_jobs_go_before_long_ones_which_keep_their_share() -> None:
    long = job("long", 500, seconds=100.0)
    scheduler = scheduler_of(long, *(job(f"user-{number}", 900, seconds=0.005) for number in range(200)))
    spent = {"long": 0.0, "short": 0.0}
    for _ in range(200):
        [one] = scheduler.next_turn(1, 1.0).jobs
        seconds = min(one.left_s, SLICE_S)
        spent["long" if one is long else "short"] += seconds
        if one is not long:
            one.future.set_result(ANSWER)
        scheduler.did([one], seconds, seconds)
    assert spent["long"] / sum(spent.values()) == pytest.approx(LONG_SHARE, abs=0.02)


def test_a_job_that_is_not_done_goes_on_in_its_turn() -> None:
    first, second = job("first", 500), job("second", 600)
    scheduler = scheduler_of(first, second)
    assert scheduler.next_turn(1, 1.0).jobs == [first]
    assert scheduler.did([first], 0.001, 0.001) == []
    assert [users(turn(scheduler)) for _ in range(2)] == [["first"], ["second"]]


def test_a_batch_is_of_jobs_that_share_one_and_passes_over_the_rest() -> None:
    given = [
        job("ann", 100, batch="small"),
        job("ann", 101, batch="small"),  # of one user only one, unless what they need is the same
        job("bob", 102),
        job("cleo", 103, batch="other"),
        job("dan", 104, batch="small"),
        job("eve", 105, batch="small", twin="history"),
        job("eve", 106, batch="small", twin="history"),
        job("eve", 107, batch="small", twin="longer history"),
        job("flo", 108, batch="small"),
    ]
    scheduler = scheduler_of(*given)
    assert users(turn(scheduler, most=4)) == ["ann", "dan", "eve", "eve"]
    assert users(turn(scheduler, most=4)) == ["ann", "eve", "flo"]
    assert [users(turn(scheduler, most=4)) for _ in range(2)] == [["bob"], ["cleo"]]


def test_a_batch_takes_no_longer_than_it_may() -> None:
    scheduler = scheduler_of(*(job(f"user-{number}", seconds=0.003, batch="all") for number in range(7)))
    assert [len(turn(scheduler, 32, SLICE_S)) for _ in range(3)] == [3, 3, 1]


def test_calls_go_before_jobs_and_are_never_too_many() -> None:
    scheduler = scheduler_of(job(), queue_size=1)
    calls = [CallJob(lambda: None) for _ in range(3)]
    for one in calls:
        scheduler.call(one)
    with pytest.raises(Overloaded):
        scheduler.check()
    assert [scheduler.next_turn(1, 1.0).call for _ in calls] == calls
    assert len(turn(scheduler)) == 1
    scheduler.check()


def test_full() -> None:
    scheduler = scheduler_of(job(), queue_size=2)
    with scheduler.coming(None), pytest.raises(Overloaded, match="2 requests, which is its limit"):
        scheduler.submit(job())  # one waits for its history
    scheduler.submit(job())
    with pytest.raises(Overloaded, match="2 requests, which is its limit"):
        scheduler.submit(job())
    assert len(scheduler) == 2
    turn(scheduler)
    scheduler.submit(job())


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def test_what_would_be_late_is_refused_with_the_time_after_which_it_would_not_be() -> None:
    scheduler = scheduler_of(*(job(due=60, seconds=5.0) for _ in range(10)), slice_s=10.0)
    scheduler.admit(soon(9), 5.0, is_short=True)  # it goes first
    scheduler.admit(None, 100.0, is_short=True)
    with pytest.raises(Overloaded, match=r"deadline: got \d+ ms, must be at least \d+ ms behind 10 other") as refused:
        scheduler.admit(soon(102), 100.0, is_short=True)
    assert refused.value.retry_after_s == pytest.approx(48, abs=2)
    assert refused.value.elsewhere


def test_a_deadline_that_is_too_short_on_any_replica_is_told_from_one_that_is_so_here() -> None:
    scheduler = scheduler_of(job(due=60, seconds=5.0), slice_s=10.0)
    with pytest.raises(
        Overloaded, match=r"must be at least 100000 ms even where nothing else is to be done"
    ) as refused:
        scheduler.admit(soon(90), 100.0, is_short=True)
    assert (refused.value.elsewhere, refused.value.retry_after_s) == (False, None)


def test_a_slow_neighbour_here_says_nothing_of_other_replicas() -> None:
    slowed = job(due=60, seconds=5.0)
    slowed.forecast = replace(slowed.forecast, slowness=2.0)
    scheduler = scheduler_of(slowed, slice_s=10.0)
    with pytest.raises(Overloaded) as refused:
        scheduler.admit(soon(90), 100.0, is_short=True)  # 50 on cores of its own
    assert refused.value.elsewhere


def test_utilisation_is_of_about_the_last_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(mfalcon.engine.scheduler, "time", SimpleNamespace(monotonic=lambda: now[0]))
    scheduler = scheduler_of(*(job(f"user-{number}") for number in range(8)))
    assert scheduler.load().utilisation == 0
    for _ in range(4):
        scheduler.did(list(scheduler.next_turn(1, 1.0).jobs), 0.001, 0.5)
    assert scheduler.load().utilisation == 0.94
    now[0] += 0.5
    assert scheduler.load().utilisation == 0.47
    scheduler.idle(2.0)
    assert scheduler.load().utilisation == 0


def test_what_would_make_another_late_is_refused() -> None:
    scheduler = scheduler_of(*(job(due=60, seconds=5.0) for _ in range(10)), slice_s=10.0)
    with pytest.raises(Overloaded, match="would make another of 10 requests miss its own") as refused:
        scheduler.admit(soon(50), 40.0, is_short=True)
    assert refused.value.retry_after_s == pytest.approx(30, abs=5)


def test_what_comes_is_waited_for() -> None:
    scheduler = scheduler_of(job(due=900, seconds=5.0), slice_s=10.0)
    for _ in range(200):
        turn(scheduler)
        scheduler.submit(job(due=900, seconds=5.0))
    with scheduler.coming(None), scheduler.coming(None), pytest.raises(Overloaded):
        scheduler.admit(soon(10), 5.0, is_short=True)
    scheduler.admit(soon(10), 5.0, is_short=True)


def test_a_long_job_waits_for_all_short_ones_and_a_short_one_for_no_more_than_its_share() -> None:
    scheduler = scheduler_of(*(job(due=500, seconds=5.0) for _ in range(4)), job(due=100, seconds=50.0), slice_s=10.0)
    scheduler.admit(soon(29), 1.0, is_short=True)
    with pytest.raises(Overloaded):
        scheduler.admit(soon(26), 20.0, is_short=True)  # three quarters of 26 s are 19.5 s
    with pytest.raises(Overloaded):
        scheduler.admit(soon(15), 1.0, is_short=False)  # 20 s of short ones


def test_long_jobs_that_are_coming_take_no_more_than_a_slice_each_from_a_short_one() -> None:
    scheduler = scheduler_of(*(job(seconds=50.0) for _ in range(200)), slice_s=1.0)  # so that these are the usual ones
    with scheduler.coming(None), scheduler.coming(None), scheduler.coming(None), scheduler.coming(None):
        scheduler.admit(soon(20), 1.0, is_short=True)
        with pytest.raises(Overloaded):
            scheduler.admit(soon(5), 1.0, is_short=True)  # three quarters of 5 s are 3.75 s


def test_what_is_short_does_not_change_with_a_neighbour_s_load() -> None:
    """A machine at a fifth of its speed: else one client's crowd would make another's small requests large ones, which
    wait for all of it.
    """
    scheduler = scheduler_of(*(job(due=900, seconds=0.005) for _ in range(200)))
    slow = job("slow", 100, seconds=0.04)
    slow.forecast = replace(slow.forecast, slowness=5.0)
    scheduler.submit(slow)
    assert slow.is_short
    assert users(turn(scheduler)) == ["slow"]
    large = job("large", 100, seconds=0.06)
    large.forecast = replace(large.forecast, slowness=5.0)
    scheduler.submit(large)
    assert not large.is_short


def test_where_nothing_waits_everything_is_taken() -> None:
    scheduler = scheduler_of()
    scheduler.submit(job(due=500, seconds=1_000.0))
    with pytest.raises(Overloaded):
        scheduler.submit(job(due=500, seconds=1_000.0))


def test_what_may_be_partial_is_taken_where_all_of_it_would_be_late() -> None:
    scheduler = scheduler_of(*(job(due=60, seconds=5.0) for _ in range(10)), slice_s=10.0)
    with pytest.raises(Overloaded):
        scheduler.submit(job("all", 100, seconds=90.0))
    with pytest.raises(Overloaded):
        scheduler.submit(partial_job("too much at least", 100, 90.0, 80.0))
    fits, part = partial_job("fits", 100, 20.0, 1.0), partial_job("part", 100, 90.0, 1.0)
    scheduler.submit(fits)
    assert (fits.extra_s, fits.owed_s) == (0.0, 20.0)
    scheduler.submit(part)
    assert (part.extra_s, part.owed_s) == (89.0, 1.0)
    before = scheduler.expected_wait().seconds
    assert before == pytest.approx(71, rel=0.01), "others wait for what is owed"
    part.left_s = 10.0
    assert part.owed_s == 0.0


def test_the_rest_of_what_may_be_partial_has_what_others_leave() -> None:
    part = partial_job("part", 50, 100.0, 0.005)
    scheduler = scheduler_of(part, job("short", 900, 0.001), job("long", 950, 5.0), job("short", 990, 0.002))
    assert scheduler.next_turn(1, 1.0).jobs == [part]
    assert scheduler.slice_of([part]) == pytest.approx(0.005), "what it was taken for and no more"
    part.left_s, part.so_far = 99.9, ANSWER
    assert scheduler.did([part], 0.005, 0.005) == []
    scheduler.admit(soon(900), 5.0, is_short=True)
    assert [users(turn(scheduler)) for _ in range(3)] == [["short"], ["short"], ["long"]]
    assert len(scheduler) == 1 and scheduler.expected_wait().seconds == 0.0
    assert scheduler.next_turn(1, 1.0).jobs == [part]
    assert scheduler.did([part], 0.01, 0.01) == []
    assert scheduler.discard(part) and not scheduler.discard(part)


def test_a_slice_ends_before_what_may_be_partial_is_answered() -> None:
    one = partial_job("ann", 100, 0.5, 0.005)
    scheduler = scheduler_of(one, slice_s=1_000.0)
    assert one.cut_at == pytest.approx(began[0] + 95, abs=1)
    assert scheduler.slice_of([one]) == pytest.approx(one.cut_at - time.monotonic(), rel=0.02)
    assert scheduler.slice_of([job("bob", 100)]) == 1_000.0
    assert scheduler.slice_of([partial_job("late", -1, 0.5, 0.005)]) == 0.0


def test_a_caller_that_left_leaves_no_work() -> None:
    one, other = job("one", 500), job("other", 600)
    scheduler = scheduler_of(one, other)
    assert scheduler.discard(one) and not scheduler.discard(one)
    assert users(turn(scheduler)) == ["other"]


def test_close_hands_back_what_is_queued_and_refuses_the_rest() -> None:
    one, other, third = job(), job("running", 1), CallJob(lambda: None)
    scheduler = scheduler_of(one, other)
    assert scheduler.next_turn(1, 1.0).jobs == [other]
    scheduler.call(third)
    assert scheduler.close() == [third, one]
    assert scheduler.did([other], 0.001, 0.001) == [other]  # nobody will do the rest of it
    assert not scheduler.next_turn(1, 1.0)
    with pytest.raises(ShuttingDown):
        scheduler.submit(job())
    with pytest.raises(ShuttingDown):
        scheduler.call(third)
    assert scheduler.close() == []


def test_close_wakes_the_one_who_waits() -> None:
    scheduler, got = Scheduler(2, SLICE_S), list[Turn]()
    thread = threading.Thread(target=lambda: got.append(scheduler.next_turn(1, 1.0)))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    scheduler.close()
    thread.join(5)
    assert got == [Turn()]


def test_no_job_is_lost_or_served_twice() -> None:
    scheduler, taken, refused = Scheduler(7, SLICE_S), list[RankJob](), list[RankJob]()
    submitted = [[job(seconds=0.001 if number % 3 else 1.0) for number in range(300)] for _ in range(4)]

    def take() -> None:
        while batch := scheduler.next_turn(1, 1.0).jobs:
            taken.extend(batch)
            for one in batch:
                one.future.set_result(ANSWER)
            scheduler.did(batch, 0.001, 0.001)

    def submit(jobs: list[RankJob]) -> None:
        for one in jobs:
            try:
                scheduler.submit(one)
            except Overloaded:
                refused.append(one)

    taker = threading.Thread(target=take)
    givers = [threading.Thread(target=submit, args=(jobs,)) for jobs in submitted]
    for thread in (taker, *givers):
        thread.start()
    for thread in givers:
        thread.join(10)
    left = scheduler.close()
    taker.join(10)
    everyone = [id(one) for jobs in submitted for one in jobs]
    assert sorted(id(one) for one in (*taken, *refused, *left)) == sorted(everyone)


def test_seen_from_afar_the_load_refuses_what_is_due_last_and_would_be_late() -> None:
    """Who is due before others may go before them: that is for the schedule to judge."""
    assert scheduler_of().load() == Load()
    before = time.monotonic()
    scheduler = scheduler_of(*(job(f"user-{number}", 900, seconds=0.005) for number in range(200)))
    load = scheduler.load()
    assert load.last_due == began[0] + 900 and load.free_at - before >= 0.9
    load.admit(began[0] + 901)
    load.admit(time.monotonic() + 0.1)
    load.admit(None)
    behind = scheduler_of(*(job(due=60, seconds=5.0) for _ in range(10)), slice_s=10.0)
    for _ in range(200):  # the device has become slower
        behind.pace.observe(0.001, 0.002)
    behind.load().admit(began[0] + 59)
    with pytest.raises(Overloaded) as refused:
        behind.load().admit(began[0] + 70)
    with pytest.raises(Overloaded) as refused_here:
        behind.admit(began[0] + 70, 0.0, is_short=True)
    assert refused.value.retry_after_s == pytest.approx(refused_here.value.retry_after_s, abs=1.0)


def test_a_full_queue_is_seen_from_afar() -> None:
    full = scheduler_of(job("ann"), job("bob"), queue_size=2)
    with pytest.raises(Overloaded):
        full.load().admit(None)

"""The bounded queue: order, bound, closing; every job goes to exactly one taker."""

import threading
import time

import pytest

from mfalcon.engine.job import DeleteJob, Job, PrefillJob
from mfalcon.engine.scheduler import Scheduler
from mfalcon.errors import Overloaded, ShuttingDown
from mfalcon.history.history import no_history
from mfalcon.kvcache.fetch import Fetched


def job(name: str = "ann") -> PrefillJob:
    return PrefillJob(Fetched(no_history(name)), None)


def test_first_come_first_served() -> None:
    scheduler, jobs = Scheduler(10), [job(str(i)) for i in range(5)]
    for one in jobs:
        scheduler.submit(one)
    assert len(scheduler) == 5
    taken = [one for _ in range(5) for one in scheduler.next_batch()]
    assert taken == jobs
    assert len(scheduler) == 0


def test_full() -> None:
    scheduler = Scheduler(2)
    scheduler.submit(job())
    scheduler.submit(job())
    with pytest.raises(Overloaded, match="2 requests, which is its limit"):
        scheduler.submit(job())
    assert len(scheduler) == 2
    scheduler.next_batch()
    scheduler.submit(job())


def test_a_job_that_erases_is_never_too_many() -> None:
    """Its log is gone already; `check` refuses a deletion before that."""
    scheduler = Scheduler(1)
    for user in (b"ann", b"bob"):
        scheduler.submit(DeleteJob(user))
    with pytest.raises(Overloaded):
        scheduler.check()
    with pytest.raises(Overloaded):
        scheduler.submit(job())


def test_close_hands_back_what_is_queued_and_refuses_the_rest() -> None:
    scheduler, one = Scheduler(2), job()
    scheduler.submit(one)
    assert scheduler.close() == [one]
    assert scheduler.next_batch() == []
    for late in (job(), DeleteJob(b"ann")):
        with pytest.raises(ShuttingDown):
            scheduler.submit(late)
    assert scheduler.close() == []


def test_close_wakes_the_one_who_waits() -> None:
    scheduler, got = Scheduler(2), list[list[Job]]()
    thread = threading.Thread(target=lambda: got.append(scheduler.next_batch()))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    scheduler.close()
    thread.join(5)
    assert got == [[]]


def test_no_job_is_lost_or_served_twice() -> None:
    scheduler, taken, refused = Scheduler(7), list[Job](), list[Job]()
    submitted = [[job() for _ in range(300)] for _ in range(4)]

    def take() -> None:
        while batch := scheduler.next_batch():
            taken.extend(batch)

    def submit(jobs: list[PrefillJob]) -> None:
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

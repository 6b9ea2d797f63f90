"""Cores of the device thread: small requests side by side, a user's requests in order, nobody's answer mixed up."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mfalcon.backends.select import reference
from mfalcon.engine.job import DeleteJob, Job, PrefillJob, RankJob
from mfalcon.engine.scheduler import Scheduler
from mfalcon.engine.warmup import measure_side_by_side
from mfalcon.engine.workers import WorkerPool, take_cores
from mfalcon.history.history import no_history
from mfalcon.kvcache.fetch import Fetched
from tests.small import rank_request, small_checkpoint


def job_of(user_id: str, num_candidates: int = 1) -> RankJob:
    return RankJob(rank_request(user_id, [1] * num_candidates), Fetched(no_history(user_id, b"life")), None)


def is_small(job: Job) -> bool:
    return isinstance(job, RankJob) and len(job.request.candidates) == 1


def batches(jobs: list[Job], most: int = 3) -> list[list[Job]]:
    scheduler = Scheduler(100)
    for job in jobs:
        scheduler.submit(job)
    found = []
    while len(scheduler):
        found.append(scheduler.next_batch(most, lambda first, other: is_small(first) and is_small(other)))
    return found


def test_a_batch_is_of_small_jobs_of_different_users_in_order() -> None:
    ann, bob, cleo, dan, ann_again, eve = [job_of(name) for name in ("ann", "bob", "cleo", "dan", "ann", "eve")]
    large = job_of("flo", 2)
    delete: Job = DeleteJob(b"user")
    prefill: Job = PrefillJob(Fetched(no_history("gil", b"life")), None)
    given: list[Job] = [ann, bob, cleo, dan, ann_again, large, eve, delete, ann_again, ann, bob, prefill]
    expected: list[list[Job]] = [
        [ann, bob, cleo],
        [dan, ann_again],
        [large],
        [eve],
        [delete],
        [ann_again],
        [ann, bob],
        [prefill],
    ]
    assert [[id(job) for job in batch] for batch in batches(given)] == [
        [id(job) for job in batch] for batch in expected
    ]


def test_without_workers_every_job_is_alone() -> None:
    assert [len(batch) for batch in batches([job_of("ann"), job_of("bob")], most=1)] == [1, 1]


def test_items_run_side_by_side_on_a_core_each_and_one_alone_on_all() -> None:
    lanes, barrier = WorkerPool(2), threading.Barrier(2, timeout=10)
    take_cores(2)
    seen: list[tuple[int, bool]] = []

    def work(_: int) -> None:
        barrier.wait()  # passes only if both are here at once
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    lanes.run(work, [0, 1])
    assert seen == [(1, True), (1, True)]
    alone: list[int] = []
    lanes.run(lambda _: alone.append(torch.get_num_threads()), [0])
    assert alone == [2]
    lanes.close()


def test_cores_are_a_thread_s_own_whatever_others_take_later() -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(take_cores, 2).result()
        other.submit(take_cores, 1).result()
        assert one.submit(torch.get_num_threads).result() == 2
        one.submit(lambda: torch.ones(10**6).sum()).result()
        assert one.submit(torch.get_num_threads).result() == 2


def test_the_measured_size_is_none_or_one_of_the_sizes() -> None:
    lanes = WorkerPool(2)
    with torch.inference_mode():
        assert measure_side_by_side(reference(small_checkpoint().model), lanes, 16, (4, 8)) in (0, 4, 8)
    lanes.close()


@pytest.mark.parametrize("seed", [0, 1])
def test_lanes_run_everything_once(seed: int) -> None:
    lanes, counts = WorkerPool(4), np.zeros(50, dtype=np.int64)
    lock = threading.Lock()

    def work(item: int) -> None:
        with lock:
            counts[item] += 1

    rng = np.random.default_rng(seed)
    order = rng.permutation(50).tolist()
    while order:
        size = int(rng.integers(1, 9))
        lanes.run(work, order[:size])
        order = order[size:]
    assert (counts == 1).all()
    lanes.close()

"""Cores of the device thread: small requests side by side, each done once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mfalcon.backends.select import reference
from mfalcon.engine.warmup import measure_side_by_side
from mfalcon.engine.workers import WorkerPool, take_cores
from tests.small import small_checkpoint


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

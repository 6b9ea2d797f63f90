"""Cores of the device thread: small requests side by side, each done once."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest
import torch

from mfalcon.backends.events import PlainReader, ServedEvents
from mfalcon.backends.select import reference
from mfalcon.engine.warmup import SMALL_SECONDS, measure_side_by_side
from mfalcon.engine.workers import WorkerPool, take_cores
from mfalcon.models.base import EventRanker, EventSide, EventTokens, Targets
from tests.small import small_checkpoint

T = TypeVar("T")


def event_ranker() -> EventRanker:
    model = small_checkpoint("din").model
    assert isinstance(model, EventRanker)
    return model


def test_items_run_side_by_side_on_a_core_each_and_one_alone_on_all() -> None:
    lanes, barrier = WorkerPool(2), threading.Barrier(2, timeout=60)
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


class MadeUpCores(WorkerPool):
    """Two cores of which a candidate takes so many seconds on one, and no request is really scored: `now` alone moves.
    two: what both cores take for a request together, of what one takes.
    """

    def __init__(self, candidate_s: float, two: float) -> None:
        super().__init__(2)
        self.now, self._candidate_s, self._two, self._share = 0.0, candidate_s, two, two

    def run(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Each item has a core of its own, and all take equally long."""
        began, self._share = self.now, 1.0
        for item in items:
            self.now = began
            work(item)
        self._share = self._two

    def read(self, events: EventTokens, context: torch.Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        return PlainReader(event_ranker()).read(events, context, time_ms)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> torch.Tensor:
        """See `Reader`: time passes, in proportion to the candidates."""
        self.now += len(targets.rows) * self._candidate_s * self._share
        return torch.zeros(len(targets.rows), 2)


def most_small(cores: MadeUpCores) -> int:
    served = ServedEvents(event_ranker(), cores, "made up")
    try:
        return measure_side_by_side(served, cores, 16, clock=lambda: cores.now)
    finally:
        cores.close()


@pytest.mark.parametrize(("candidate_us", "most"), [(1, 2_048), (9, 2_048), (15, 1_024), (71, 256), (1_000, 0)])
def test_what_one_core_takes_bounds_a_small_request(candidate_us: float, most: int) -> None:
    """A DLRM of 71 us a candidate gains from it at every size: at 1,024 for an answer of 73 ms in the place of 38."""
    assert most * candidate_us <= 1e6 * SMALL_SECONDS
    assert most_small(MadeUpCores(1e-6 * candidate_us, two=0.6)) == most


@pytest.mark.parametrize(("two", "most"), [(0.5, 0), (0.52, 0), (0.54, 2_048)])
def test_only_what_gains_is_done_side_by_side(two: float, most: int) -> None:
    assert most_small(MadeUpCores(1e-6, two)) == most


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

"""The cores of the device thread, cut up: one request on all of them, or several small ones side by side, a core each.

A small request cannot fill several cores (a microbatch is a core's work) and pays for every barrier between them; which
requests are small is measured at start (`warmup.measure_side_by_side`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def take_cores(num_cores: int) -> None:
    """Make this the number of threads of torch's operators, and of our kernels, in the calling thread.

    torch keeps a number per thread and one for threads that are new to it, and sets both at once: a thread that has not
    computed yet would take the number that another one set last. Asking first ends that.
    """
    torch.get_num_threads()
    torch.set_num_threads(num_cores)


def on_one_core(work: Callable[[], R]) -> R:
    """Do work beside the device thread, whose cores the others are."""
    take_cores(1)
    return work()


class WorkerPool:
    """`num_workers` threads of one torch thread each. Owned by the device thread, which waits while they work."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._threads = ThreadPoolExecutor(num_workers, "mfalcon-worker", take_cores, (1,))

    def run(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Do the work of every item: side by side if there is one for each worker, else one by one on all cores."""
        if len(items) < self.num_workers or self.num_workers == 1:
            for item in items:
                work(item)
            return
        done: list[Future[None]] = [self._threads.submit(_inference, work, item) for item in items]
        wait(done)
        for future in done:
            future.result()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


def _inference(work: Callable[[T], None], item: T) -> None:
    with torch.inference_mode():
        work(item)

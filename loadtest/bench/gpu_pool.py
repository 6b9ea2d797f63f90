"""One function on many items by a pool of processes, of which some may die: that costs what they were at, no more."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Work(Generic[Item, Result]):
    """num: of processes. begin: what a process does first."""

    function: Callable[[Item], Result]
    num: int
    begin: Callable[[], object]

    def done(self, items: Iterable[Item], end: float) -> Iterator[tuple[Item, Result | BaseException]]:
        """Each item with its result or its error, as they come, until a time of the monotonic clock.

        A process that dies takes the whole pool with it, and nobody knows what it was at: as many items as there are
        processes, the first that were not done, are given up, and a fresh pool takes the rest.
        """
        pool, futures = self._pool(), dict[Future[Result], Item]()
        for item in items:  # while they are found the first are done
            try:
                future = pool.submit(self.function, item)
            except BrokenProcessPool:
                pool = self._pool()
                future = pool.submit(self.function, item)
            futures[future] = item
        while futures:
            lost = []
            try:
                for future in as_completed(futures, timeout=max(0.0, end - time.monotonic())):
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        lost.append(future)
                    else:
                        yield futures[future], future.result() if error is None else error
            except TimeoutError:
                break
            left = [item for future, item in futures.items() if future in lost]
            yield from ((item, RuntimeError("a process died at this or beside it")) for item in left[: self.num])
            pool = self._pool()
            futures = {pool.submit(self.function, item): item for item in left[self.num :]}
        pool.shutdown(wait=False, cancel_futures=True)

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.num, mp_context=get_context("spawn"), initializer=self.begin)

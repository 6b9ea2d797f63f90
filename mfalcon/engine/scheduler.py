"""The bounded queue between the event loop and the device thread: first come, first served."""

import threading
from collections import deque
from collections.abc import Callable

from mfalcon.engine.job import CallJob, DeleteJob, Job
from mfalcon.errors import Overloaded, ShuttingDown


class Scheduler:
    """Accepts jobs from any thread, hands them to one. The bound refuses work early instead of answering it late."""

    def __init__(self, queue_size: int) -> None:
        self._queue_size = queue_size
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def check(self) -> None:
        """Raise Overloaded when the queue is full, ShuttingDown after `close`."""
        if self._closed:
            raise ShuttingDown("the server is shutting down")
        if len(self._jobs) >= self._queue_size:
            raise Overloaded(f"the queue holds {self._queue_size} requests, which is its limit; try again later")

    def submit(self, job: Job) -> None:
        """Queue a job. Raises as `check` does; a job that deletes is never too many."""
        with self._changed:
            if self._closed or not isinstance(job, DeleteJob | CallJob):
                self.check()
            self._jobs.append(job)
            self._changed.notify()

    def next_batch(self, most: int = 1, joins: Callable[[Job, Job], bool] = lambda _, __: False) -> list[Job]:
        """Wait for work; an empty list means closed.

        The oldest job, and up to `most` in all of those right behind it that join it, each of another user: a user's
        jobs stay in order, and so does a job that deletes.
        """
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            batch = [self._jobs.popleft()]
            users = {batch[0].user}
            while len(batch) < most and self._jobs and joins(batch[0], self._jobs[0]):
                if self._jobs[0].user in users:
                    break
                batch.append(self._jobs.popleft())
                users.add(batch[-1].user)
            return batch

    def close(self) -> list[Job]:
        """Accept nothing more; returns what was still queued, for the caller to answer."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            return left

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def __len__(self) -> int:
        return len(self._jobs)

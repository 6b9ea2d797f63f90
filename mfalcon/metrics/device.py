"""What the device has to do: its queue, its steps, and the work that it was spared."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Histogram

from mfalcon.errors import DeadlineExceeded, Overloaded
from mfalcon.metrics.catalog import device, requests

_CANCELLED_AHEAD_S = 0.005
"""Whoever bounds a request by its deadline may cancel it so much before."""


class DeviceMetrics:
    """Of one device. Any thread may count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self._queue_jobs = device.QUEUE_JOBS.made(r)
        self._running_jobs = device.RUNNING_JOBS.made(r)
        self._queue_seconds = device.QUEUE_SECONDS.made(r)
        self._heartbeat = device.DEVICE_HEARTBEAT.made(r)
        self._unanswered = requests.UNANSWERED.made(r)
        self.partial = requests.PARTIAL.made(r)
        self._batch_jobs = device.BATCH_JOBS.made(r)
        self._slice_seconds = device.SLICE_SECONDS.made(r)
        self._cost_ratio = device.COST_RATIO.made(r)
        self._of_steps: dict[str, tuple[Histogram, Histogram, Histogram]] = {}
        """The last three, of a model."""

    def watch(
        self,
        num_queued: Callable[[], float],
        num_running: Callable[[], float],
        queue_seconds: Callable[[], float],
        heartbeat: Callable[[], float],
    ) -> None:
        """Ask these whenever somebody looks. Any thread may be asked."""
        self._queue_jobs.set_function(num_queued)
        self._running_jobs.set_function(num_running)
        self._queue_seconds.set_function(queue_seconds)
        self._heartbeat.set_function(heartbeat)

    def step(self, model: str, num_jobs: int, predicted_s: float, took_s: float) -> None:
        """A step has ended."""
        children = self._of_steps.get(model)
        if children is None:
            children = self._batch_jobs.labels(model), self._slice_seconds.labels(model), self._cost_ratio.labels(model)
            self._of_steps[model] = children
        batch_jobs, slice_seconds, cost_ratio = children
        batch_jobs.observe(num_jobs)
        slice_seconds.observe(took_s)
        if predicted_s > 0:
            cost_ratio.observe(took_s / predicted_s)

    @contextmanager
    def answering(self, model: str, deadline: float | None) -> Iterator[None]:
        """Count a request that ends without an answer, and why. deadline: time.monotonic() seconds."""
        try:
            yield
        except Overloaded:
            self._unanswered.labels(model, "refused").inc()
            raise
        except DeadlineExceeded:
            self._unanswered.labels(model, "late").inc()
            raise
        except asyncio.CancelledError:
            is_late = deadline is not None and time.monotonic() >= deadline - _CANCELLED_AHEAD_S
            self._unanswered.labels(model, "late" if is_late else "abandoned").inc()
            raise

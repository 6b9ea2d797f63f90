"""What the device has to do: its queue, its steps, and the work that it was spared."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mfalcon.errors import DeadlineExceeded, Overloaded

_BATCH_JOBS = (1, 2, 4, 8, 16, 32, 64)
_SLICE_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
_CANCELLED_AHEAD_S = 0.005
"""Whoever bounds a request by its deadline may cancel it so much before."""


class DeviceMetrics:
    """Of one device. Any thread may count."""

    def __init__(self, registry: CollectorRegistry) -> None:
        r = registry
        self._queue_jobs = Gauge("mfalcon_queue_jobs", "Jobs that wait for the device, now.", registry=r)
        self._queue_seconds = Gauge(
            "mfalcon_queue_seconds", "Time that the jobs which wait are predicted to take, now.", registry=r
        )
        self._heartbeat = Gauge(
            "mfalcon_device_heartbeat_seconds",
            "Time since the step of requests in progress began, 0 while there is none.",
            registry=r,
        )
        self._unanswered = Counter(
            "mfalcon_unanswered",
            "Ranks and prefills that the engine did not answer: refused by prediction or for want of room, late, or "
            "abandoned by their caller.",
            ["model", "reason"],
            registry=r,
        )
        self.partial = Counter(
            "mfalcon_partial",
            "Ranks that were answered with the scores of their first candidates alone, as they allow.",
            ["model"],
            registry=r,
        )
        self._batch_jobs = Histogram(
            "mfalcon_batch_jobs", "Jobs that one step did.", ["model"], buckets=_BATCH_JOBS, registry=r
        )
        self._slice_seconds = Histogram(
            "mfalcon_slice_seconds", "Time of a step of requests.", ["model"], buckets=_SLICE_SECONDS, registry=r
        )
        self._cost_ratio = Histogram(
            "mfalcon_cost_ratio",
            "Time of a step over the time that was predicted of it.",
            ["model"],
            buckets=_RATIOS,
            registry=r,
        )
        self._of_steps: dict[str, tuple[Histogram, Histogram, Histogram]] = {}
        """The last three, of a model."""

    def watch(
        self,
        num_queued: Callable[[], float],
        queue_seconds: Callable[[], float],
        heartbeat: Callable[[], float],
    ) -> None:
        """Ask these whenever somebody looks. Any thread may be asked."""
        self._queue_jobs.set_function(num_queued)
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

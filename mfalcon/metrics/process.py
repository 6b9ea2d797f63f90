"""What the process itself takes, and whether its event loop keeps up."""

import asyncio
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, Histogram, PlatformCollector, ProcessCollector

_LOOP_PERIOD_S = 0.05
_LAG_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_TASKS = Path("/proc/self/task")


class ProcessMetrics:
    """Memory, descriptors and processor time are prometheus_client's own (Linux only)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        if _TASKS.is_dir():
            threads = Gauge("process_threads", "Number of OS threads in the process.", registry=registry)
            threads.set_function(lambda: sum(1 for _ in _TASKS.iterdir()))
        self._loop_lag = Histogram(
            "mfalcon_loop_lag_seconds",
            f"How late the event loop runs what is due, asked every {_LOOP_PERIOD_S:g} s.",
            buckets=_LAG_SECONDS,
            registry=registry,
        )

    async def watch_loop(self) -> None:
        """Sleep and observe by how much it was too long, until cancelled. A stall that is longer than the period is
        seen for certain, a shorter one by chance.
        """
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOP_PERIOD_S
            await asyncio.sleep(_LOOP_PERIOD_S)
            self._loop_lag.observe(max(0.0, loop.time() - due))

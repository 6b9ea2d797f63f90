"""Whether an event loop keeps up."""

import asyncio

from prometheus_client import CollectorRegistry, Histogram

_PERIOD_S = 0.05
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class LoopLag:
    """How late a loop runs what is due. frontend: whose loop, by number; "" is the engine's."""

    def __init__(self, registry: CollectorRegistry, frontend: str = "") -> None:
        self._seconds = Histogram(
            "mfalcon_loop_lag_seconds",
            f"How late the event loop runs what is due, asked every {_PERIOD_S:g} s.",
            ["frontend"],
            buckets=_SECONDS,
            registry=registry,
        ).labels(frontend)

    async def watch(self) -> None:
        """Sleep and observe by how much it was too long, until cancelled. A stall that is longer than the period is
        seen for certain, a shorter one by chance.
        """
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self._seconds.observe(max(0.0, loop.time() - due))

"""Whether an event loop keeps up."""

import asyncio

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import device

_PERIOD_S = 0.05


class LoopLag:
    """How late a loop runs what is due. frontend: whose loop, by number; "" is the engine's."""

    def __init__(self, registry: CollectorRegistry, frontend: str = "") -> None:
        self._seconds = device.LOOP_LAG.made(registry).labels(frontend)

    async def watch(self) -> None:
        """Sleep and observe by how much it was too long, until cancelled. A stall that is longer than the period is
        seen for certain, a shorter one by chance.
        """
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _PERIOD_S
            await asyncio.sleep(_PERIOD_S)
            self._seconds.observe(max(0.0, loop.time() - due))

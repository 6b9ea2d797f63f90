"""Deltas of item rows for the models that are served: made beside the requests, and swapped in between two steps."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from mfalcon.beside import beside
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.engine.workers import on_one_core
from mfalcon.errors import CheckpointError, InvalidInput, Overloaded
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveItems
from mfalcon.items.version import ItemVersion
from mfalcon.metrics.items import ItemMetrics
from mfalcon.types import ItemsUpdated

_log = logging.getLogger(__name__)
_MOST_WAITING = 4
"""Deltas of all models that may wait for another one: they may be large."""

T = TypeVar("T")


class ItemUpdates:
    """Lives on the event loop. One delta of a model at a time."""

    def __init__(self, catalog: Catalog, device: Device, metrics: ItemMetrics) -> None:
        self._catalog = catalog
        self._device = device
        self._metrics = metrics
        self._num_waiting = 0

    async def update(self, model: str, delta: Delta) -> ItemsUpdated:
        """Serve a model with these rows from the next step on; see `LiveItems.made` for what it raises. UnknownModel,
        ShuttingDown, and Overloaded while others wait. A caller that leaves does not stop it.
        """
        name = self._catalog.get(model).name
        if self._num_waiting >= _MOST_WAITING:
            raise Overloaded(f"items: {self._num_waiting} deltas wait already; try again when they are applied")
        self._num_waiting += 1
        task = asyncio.create_task(self._update(name, delta))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its caller may be gone
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, _: "asyncio.Task[ItemsUpdated]") -> None:
        self._num_waiting -= 1

    async def _update(self, name: str, delta: Delta) -> ItemsUpdated:
        began = time.monotonic()
        try:
            version = await self._swapped(name, delta)
        except (CheckpointError, InvalidInput, Overloaded) as error:
            self._metrics.refused(name, error)
            raise
        self._metrics.applied(name, version.number, delta.num_rows, time.monotonic() - began)
        return ItemsUpdated(name, version.name, version.number, delta.num_rows, version.items.num_rows - 1)

    async def _swapped(self, name: str, delta: Delta) -> ItemVersion:
        async with self._catalog.held(name) as ranker:
            version = await self._made(ranker.live, delta)
            await swap(self._device, ranker, version)
            return version

    async def _made(self, live: LiveItems, delta: Delta) -> ItemVersion:
        """Beside the device thread; on a GPU on it, because no other thread asks that device for anything."""
        if self._device.device.type == "cuda":
            return await self._on_device(lambda: live.made(delta, patience_s=0.0))
        return await beside(lambda: on_one_core(lambda: live.made(delta)), in_background=True)

    async def _on_device(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._device.call(work))


async def swap(device: Device, ranker: LoadedRanker, version: ItemVersion) -> None:
    """Have a ranker's requests begin with this version from the next step on. The holder of its lock alone."""
    await asyncio.wrap_future(device.call(lambda: setattr(ranker.live, "current", version)))
    ranker.info = replace(ranker.info, items_version=version.name)

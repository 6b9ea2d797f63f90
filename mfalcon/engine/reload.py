"""Another checkpoint under the name of a model that is served: loaded beside it, proved, warmed, swapped in."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mfalcon.beside import beside
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device
from mfalcon.engine.ensembles import Ensembles
from mfalcon.engine.graph_refreshes import swap_graph
from mfalcon.engine.histories import Histories
from mfalcon.engine.item_updates import swap
from mfalcon.engine.job import prefill_job
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.engine.runner import Runner
from mfalcon.engine.workers import on_one_core
from mfalcon.errors import MFalconError, Overloaded, ShuttingDown
from mfalcon.kvcache.fetch import Fetched
from mfalcon.metrics.states import StateMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import ModelInfo

_log = logging.getLogger(__name__)
_STAGED = "\0staged"
"""Behind the name of a model: its next one, while that is warmed. No name that is served has such an end."""
_POLL_S = 0.002
_READ_S = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReloadOptions:
    """warm_users: most users, the last seen first, whose states are encoded with the new weights before the swap.
    warm_s: most seconds that this takes, in the device's idle time.
    """

    warm_users: int = 1_000
    warm_s: float = 10.0


class Reloader:
    """Exchanges models in a catalog. Lives on the event loop; one exchange of a model at a time."""

    def __init__(
        self,
        catalog: Catalog,
        device: Device,
        histories: Histories,
        metrics: StateMetrics,
        options: ReloadOptions,
        ensembles: Ensembles,
    ) -> None:
        self._catalog = catalog
        self._device = device
        self._histories = histories
        self._metrics = metrics
        self._options = options
        self._ensembles = ensembles
        self._under_way: dict[str, asyncio.Task[ModelInfo]] = {}
        self._swapping = asyncio.Lock()

    async def reload(self, model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        """Serve what `load` gives instead of what is served under a name. load: runs in a thread of its own. A caller
        that leaves does not stop it.

        Whatever it raises (CheckpointError, say) leaves the old one serving, as do ConfigError for one that cannot be
        served here, or not be merged any more with the other members of an ensemble, CheckpointError for one whose
        scores are wrong, UnknownModel, ShuttingDown, and Overloaded while another exchange of the model is under way.
        """
        name = self._catalog.get(model).name
        if self._device.closed:
            raise ShuttingDown("the server is shutting down")
        if name in self._under_way:
            raise Overloaded(f"model {name} is being reloaded; try again when that has ended")
        task = self._under_way[name] = asyncio.create_task(self._reload(name, load))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its caller may be gone
        task.add_done_callback(lambda _: self._under_way.pop(name))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ShuttingDown("the server shut down before the model was reloaded") from None
            raise

    async def close(self) -> None:
        """Give up what is under way; what a thread still loads is let go of when it is there."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _reload(self, name: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        try:
            info = await self._exchange(name, load)
        except BaseException as error:
            self._metrics.reloads.labels(name, "failed").inc()
            _log.error(
                "model %s: not reloaded, version %s serves on: %s", name, self._catalog.get(name).info.version, error
            )
            raise
        self._metrics.reloads.labels(name, "swapped").inc()
        return info

    async def _exchange(self, name: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        began = time.monotonic()
        old = self._catalog.get(name)
        new = await beside(lambda: on_one_core(lambda: old.successor(load())))
        try:
            self._ensembles.check(new.info)
            new.start()
            await beside(lambda: on_one_core(new.prove))
            await self._keep_items(old, new)
            runner = await self._on_device(new.warm)
            await self._on_device(lambda: self._device.serve(self._device.runners | {name + _STAGED: runner}))
            num_warmed = await self._warm(new, name + _STAGED, old.recent_users)
            async with self._swapping, old.live.lock:  # each is checked against what the others have become
                self._ensembles.check(new.info)
                await self._keep_items(old, new)
                await self._on_device(lambda: self._swap(name, runner))
                self._catalog.replace(new)
                self._metrics.serves(new.info, instead_of=old.info)
        except BaseException:
            with contextlib.suppress(ShuttingDown):
                await self._on_device(lambda: self._unstage(name))
            await new.close()
            raise
        await old.close()
        _log.info(
            "model %s: version %s instead of %s after %.1f s, %d users warmed",
            *(name, new.info.version, old.info.version, time.monotonic() - began, num_warmed),
        )
        return new.info

    async def _warm(self, new: LoadedRanker, staged: str, users: list[str]) -> int:
        """Encode the histories of users, one after the other, whenever nobody else waits for the device, while there
        is room for more.
        """
        until, num_warmed = time.monotonic() + self._options.warm_s, 0
        if new.info.reads_last_events:
            return 0
        for user_id in users[: self._options.warm_users]:
            while self._device.num_queued() and time.monotonic() < until:  # noqa: ASYNC110 (others' work has no event)
                await asyncio.sleep(_POLL_S)
            if time.monotonic() >= until or not new.may_warm:
                break
            try:
                reading = await self._histories.log.read(user_id, _READ_S)
                if reading.stale or not len(reading.history):
                    continue
                job = prefill_job(Fetched(reading.history), until, staged)
                self._device.submit(job)
                await asyncio.wrap_future(job.future)
            except ShuttingDown:
                raise
            except MFalconError as error:  # warming is a kindness: what fails is encoded when it is asked for
                _log.warning("a user was not warmed: %s", error)
                continue
            num_warmed += 1
        return num_warmed

    async def _keep_items(self, old: LoadedRanker, new: LoadedRanker) -> None:
        """What deltas have made of the item table, and the last graph vectors, hold for the same checkpoint, once more
        if more of them have come. To another one they mean nothing.
        """
        if old.checkpoint.fingerprint == new.checkpoint.fingerprint and old.live.current.name != new.live.current.name:
            version = await beside(lambda: on_one_core(lambda: new.live.adopted(old.live)))
            await swap(self._device, new, version)
        if new.graph.current.name != (graph := new.graph.adopted(old.graph)).name:
            await swap_graph(self._device, new, graph)

    async def _on_device(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._device.call(work))

    def _swap(self, name: str, runner: Runner) -> None:
        """From the next step on the new one answers, also what was queued for the old one."""
        self._unstage(name)
        self._device.serve(self._device.runners | {name: runner})

    def _unstage(self, name: str) -> None:
        self._device.serve({key: one for key, one in self._device.runners.items() if key != name + _STAGED})

"""A server that listens: an engine behind its transports, from the first byte accepted to the last one drained."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine
from typing import Protocol

from mfalcon.errors import ConfigError
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.items.delta import Delta
from mfalcon.metrics.certificates import CertificateMetrics
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.url import redacted
from mfalcon.types import ItemsUpdated, ModelInfo
from server.access.access import Access
from server.access.metered import MeteredEngine
from server.access.quota import Ledger
from server.addresses import Addresses
from server.config import ServerConfig
from server.frontends.frontends import Frontends
from server.grpc.admin import AdminServer
from server.http.metrics import MAX_CONNECTIONS, MetricsServer
from server.item_folder import GRAPH, ITEMS, Watched, folder_of
from server.options import loader
from server.ranking_engine import RankingEngine
from server.reload import Reloads, mark_of
from server.runtime import settle
from server.tls import Certificates
from server.transports import Transports, connection_limits

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 0.25


class ServedEngine(RankingEngine, Protocol):
    """An engine whose life is the server's."""

    async def update_items(self, model: str, delta: Delta) -> ItemsUpdated:
        """Serve a model with other item rows; see `mfalcon.engine.engine.Engine`."""
        ...

    async def refresh_graph(self, model: str, refresh: GraphRefresh) -> None:
        """Serve a model with other graph vectors; see `mfalcon.engine.engine.Engine`."""
        ...

    async def reload(self, model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        """Serve another checkpoint under a name; whatever it raises leaves the old one serving."""
        ...

    async def start(self) -> None:
        """Begin what runs beside the requests. Raises ConfigError."""
        ...

    def lost(self, stall_s: float) -> str | None:
        """Why nobody will be answered any more, a step of more than `stall_s` seconds included; None while all is
        well.
        """
        ...

    async def reach_redis(self) -> None:
        """Return once Redis has answered, at once without one. Raises ConfigError."""
        ...

    async def hand_over(self, seconds: float, most_bytes: int) -> None:
        """Have Redis hold the states used last, within so many seconds; requests go on meanwhile."""
        ...

    async def close(self) -> None:
        """Stop the device thread; requests still queued get ShuttingDown."""
        ...


class Front(Protocol):
    """What callers meet: `Transports` in this process, or `Frontends` in others."""

    @property
    def running(self) -> bool:
        """From the start until the last answer of a stop."""
        ...

    @property
    def status(self) -> str:
        """What the server does, in a word or two."""
        ...

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        ...

    async def scrape(self, *, open_metrics: bool = False) -> bytes:
        """What /metrics shows."""
        ...

    async def listen(self) -> Addresses:
        """Listen on both transports. ConfigError when an address is taken."""
        ...

    def wait_for_redis(self) -> None:
        """Say from now on that this is what an engine waits for."""
        ...

    async def serve(self, engine: RankingEngine) -> None:
        """Answer requests with an engine from now on."""
        ...

    def reopen_logs(self) -> None:
        """Write the access log to the file that has its name now."""
        ...

    async def stop(self) -> None:
        """Drain."""
        ...


def without_credentials(config: ServerConfig) -> dict[str, object]:
    """The settings as JSON can hold them; URLs without who may use them."""
    settings = config.model_dump(mode="json")
    return {
        name: redacted(value) if isinstance(value, str) and "://" in value else value
        for name, value in settings.items()
    }


class Service:
    """An engine behind its transports, from the first byte accepted to the last one drained.

    It listens first, refuses with NotReady, and serves once it is given an engine.
    """

    def __init__(self, config: ServerConfig, metrics: ServerMetrics | None = None) -> None:
        """Raises ConfigError for a file of callers that cannot be used."""
        metrics = metrics or ServerMetrics()
        self._engine: ServedEngine | None = None
        self._config = config
        self._access = Access(config)
        self._ledger = Ledger(metrics.callers)
        self._access.when_read(self._ledger.know)
        self._certificates = Certificates(config, CertificateMetrics(metrics.registry)) if config.has_tls else None
        self._front: Front = (
            Frontends(config, metrics.registry, metrics.frontend_restarts)
            if config.frontends
            else Transports(config, metrics, self._access, certificates=self._certificates)
        )
        metrics.build.configured(without_credentials(config))
        self._reloads: Reloads[Checkpoint] | None = None
        self._admin: AdminServer | None = None
        self._metrics: MetricsServer | None = None
        self._marks = {model.checkpoint: mark_of(model.checkpoint) for model in config.served}  # before they are loaded
        self._folders: dict[str, list[Watched]] = {}
        self._item_metrics, self._graph_metrics = metrics.items, metrics.graph
        self._loop_lag = metrics.loop_lag
        self._registry = metrics.registry
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        """From the start until the last answer of a stop."""
        return self._front.running

    async def listen(self) -> Addresses:
        """Listen on both transports. ConfigError when an address is taken."""
        for work in (self._loop_lag.watch(), self._access.watch()):
            self._tasks.add(asyncio.create_task(work))
        if self._certificates is not None:
            self._tasks.add(asyncio.create_task(self._certificates.watch()))
        addresses = await self._front.listen()
        if self._config.metrics_port is None:
            return addresses
        self._metrics = MetricsServer(
            self._front,
            self._front.scrape,
            dataclasses.replace(connection_limits(self._config), max_connections=MAX_CONNECTIONS),
            self._access,
            self._certificates,
            certificate_required=self._config.requires_client_certs,
            own_host=self._config.metrics_host if self._config.answers_anybody else None,
        )
        try:
            metrics = await self._metrics.start(self._config.metrics_host, self._config.metrics_port)
        except ConfigError:
            await self._front.stop()
            raise
        return dataclasses.replace(addresses, metrics=metrics)

    async def serve(self, engine: ServedEngine) -> None:
        """Start a warm engine, wait for its Redis and answer requests with it; `stop` closes it. ConfigError if it
        cannot start.
        """
        self._engine = engine
        await engine.start()
        if not self._config.ready_without_redis:
            self._front.wait_for_redis()
            await engine.reach_redis()
        await self._start_folders(engine)
        await self._start_reloads(engine)
        await self._front.serve(MeteredEngine(engine, self._ledger) if self._access.is_on else engine)

    def hang_up(self) -> None:
        """What SIGHUP does: read who may call and the certificate again, open the access log anew, and reload every
        model from its directory. By default it would end the process.
        """
        self._begin(self._access.look_beside())
        if self._certificates is not None:
            self._begin(self._certificates.look())
        self._front.reopen_logs()
        if self._reloads is None:
            logger.warning("SIGHUP: no model is served yet that could be reloaded")
            return
        self._begin(self._reloads.reload_all())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_folders(self, engine: ServedEngine) -> None:
        """Deltas of items and graph vectors that are there are served from the first request on."""
        names = [info.name for info in engine.models]
        for name, model in zip(names, self._config.served, strict=False):
            folders = self._folders[name] = list[Watched]()
            if (place := model.items_dir) is not None:
                refused = self._item_metrics.refused
                folders.append(folder_of(ITEMS, place, name, lambda: engine.models, engine.update_items, refused))
            if (place := model.graph_dir) is not None:
                refused = self._graph_metrics.refused
                folders.append(folder_of(GRAPH, place, name, lambda: engine.models, engine.refresh_graph, refused))
            for folder in folders:
                await folder.look()
                self._tasks.add(asyncio.create_task(folder.watch(self._config.items_watch_seconds)))

    async def _start_reloads(self, engine: ServedEngine) -> None:
        config = self._config
        names = [info.name for info in engine.models]
        directories = dict(zip(names, (model.checkpoint for model in config.served), strict=False))

        async def exchange(model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
            info = await engine.reload(model, load)
            settle()
            for folder in self._folders.get(model, ()):  # what is for the new checkpoint may be there already
                self._begin(folder.look())
            return info

        self._reloads = reloads = Reloads(directories, self._marks, loader(config), exchange, lambda: engine.models)
        if config.admin_port is not None:
            self._admin = AdminServer(reloads, self._access, self._certificates, engine.update_items)
            address = await self._admin.start(config.admin_host, config.admin_port)
            logger.info("admin: grpc %s", address)
        if config.watch_seconds:
            self._tasks.add(asyncio.create_task(reloads.watch(config.watch_seconds)))

    async def lost(self) -> str:
        """Return why, once the engine will answer nobody any more."""
        assert self._engine is not None
        while (why := self._engine.lost(self._config.device_stall_s)) is None:  # noqa: ASYNC110 (a hang has no event)
            await asyncio.sleep(HEARTBEAT_SECONDS)
        return why

    async def stop(self) -> None:
        """Hand over, drain, then close the engine unless it is lost: it might wait for its device for ever."""
        for task in self._tasks:
            task.cancel()
        if self._admin is not None:
            await self._admin.stop()
        if self._engine is not None and self._engine.lost(self._config.device_stall_s) is None:
            await self._engine.hand_over(self._config.handover_s, self._config.handover_mb << 20)
        await self._front.stop()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._engine is not None and self._engine.lost(self._config.device_stall_s) is None:
            await self._engine.close()

"""The composition root: engine, handler, both transports, the life of the process. Only this file sees the engine."""

import asyncio
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

import torch

from mfalcon.backends.select import device_named, free_bytes, use_device
from mfalcon.beside import any_beside, beside
from mfalcon.capture.capture import Capture, CaptureOptions
from mfalcon.capture.files import FileLimits
from mfalcon.cgroup import Cgroups
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import EngineConfig, compose_all, shared
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import ConfigError, EngineFailure
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.history.budget import LogBudget, budget_of_directory
from mfalcon.history.file_log import FileLogOptions
from mfalcon.history.redis_log import LogOptions
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveOptions
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.memory import available_bytes, budget_of_states
from mfalcon.merging.merge import Calibration
from mfalcon.metrics.certificates import CertificateMetrics
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.redis.url import redacted
from mfalcon.rerank.language_model import LanguageModelOptions
from mfalcon.types import ItemsUpdated, ModelInfo
from server import arrivals, banner
from server.access.access import Access
from server.access.metered import MeteredEngine
from server.access.quota import Ledger
from server.addresses import Addresses
from server.config import ServerConfig
from server.frontends.frontends import Frontends
from server.grpc.admin import AdminServer
from server.http.metrics import MAX_CONNECTIONS, MetricsServer
from server.item_folder import GRAPH, ITEMS, Watched, folder_of
from server.logs import flush_or_forget, flush_output, log_to_stderr
from server.pseudonym import name_users, user_tag
from server.ranking_engine import RankingEngine
from server.reload import Reloads, mark_of
from server.remote_replica import RemoteReplica, tls_to
from server.runtime import new_event_loop, settle
from server.settings.models import EnsembleConfig
from server.tls import Certificates
from server.tracing import trace_to
from server.transports import Transports, connection_limits

logger = logging.getLogger(__name__)

MIN_SECRET_BYTES = 16
MAX_KEY_CHARS = 4_096
USUAL_STATES_MB = 1_024
"""Memory for KV states where neither the operator nor a container says how much."""
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
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


class DeviceLost(EngineFailure):
    """What computes has died or hangs; the message says which. Only another process helps."""


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


async def run(load: Callable[[], ServedEngine], config: ServerConfig, metrics: ServerMetrics | None = None) -> None:
    """Listen, load an engine in a thread beside, serve until SIGTERM or SIGINT, then drain. A second signal ends the
    process at once.

    load: raises what the process ends with. Raises DeviceLost, after a drain, when nothing can be computed any more.
    """
    service = Service(config, metrics)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    addresses = await service.listen()
    loop.add_signal_handler(signal.SIGHUP, service.hang_up)
    redis_url = None if config.redis_url is None else redacted(config.redis_url.get_secret_value())
    for line in banner.of_settings(config, redis_url, addresses):
        logger.info("%s", line)
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stopping.set)
    stop = asyncio.create_task(stopping.wait())
    loading = beside(load)

    async def start() -> None:
        await service.serve(await asyncio.shield(loading))

    starting, lost = asyncio.create_task(start()), None
    try:
        await asyncio.wait((stop, starting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            settle()
            say(f"ready grpc={addresses.grpc} http={addresses.http}")
            lost = asyncio.create_task(service.lost())
            await asyncio.wait((stop, lost), return_when=asyncio.FIRST_COMPLETED)
            say("draining")
    finally:
        stop.cancel()
        starting.cancel()
        await asyncio.wait((starting,))
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)
            # Python's own handler of SIGINT would take the interpreter down under a thread that still loads: an abort.
            signal.signal(number, signal.SIG_DFL)
        await service.stop()
    say("stopped")
    if lost is not None and lost.done():
        raise DeviceLost(lost.result())


def say(line: str) -> None:
    """Print a line for whoever may read it; the server's life does not hang on that."""
    try:
        print(line, flush=True)
    except OSError:
        flush_or_forget(sys.stdout)


def build_engine(config: ServerConfig, metrics: ServerMetrics) -> ServedEngine:
    """Load the checkpoint and start a warm engine on it."""
    device = device_named(config.device)
    use_device(device)
    load = loader(config)
    checkpoints = [load(model.checkpoint) for model in config.served]
    capture = capture_of(config, metrics)
    engine = compose_all(
        list(zip(checkpoints, model_options(config, device), strict=True)),
        EngineConfig(
            threads=config.threads or owned_cores(),
            queue_size=config.queue_size,
            slice_s=config.slice_ms / 1000,
            reload=ReloadOptions(config.reload_warm_users, config.reload_warm_s),
            histories=HistoryOptions(
                log_max_events=config.log_max_events,
                log_slack=config.log_slack_events,
                max_counted_items=config.counters_max_items,
                late_events=config.late_events,
                redis=redis_options(config),
                file=file_options(config),
                budget=log_budget(config),
            ),
        ),
        metrics,
        [ensemble_options(ensemble) for ensemble in config.ensembles],
        language_model_options(config),
        capture,
    )
    engine.wait_ready()
    for ranker in engine.catalog:
        for line in banner.of_model(ranker.info, ranker.served.unavailable):
            logger.info("%s", line)
    for ensemble in engine.ensembles:
        logger.info("%s", banner.of_ensemble(ensemble.info))
    for model in config.served:
        if (note := banner.note_of(model.checkpoint)) is not None:
            logger.warning("checkpoint %s: %s", model.checkpoint, note)
    return engine


def model_options(config: ServerConfig, device: torch.device) -> list[RankerOptions]:
    """Those of every served model, the default one first. Where nothing is said of a GPU's memory, what is free there
    now is shared: after all weights have been loaded, and before there is any pool.
    """
    options = RankerOptions(
        backend=config.backend,
        kv_dtype=config.kv_dtype,
        microbatch=None if config.microbatch == "auto" else config.microbatch,
        kv_budget_bytes=state_bytes(config),
        device_budget_bytes=config.device_budget_mb << 20 or free_bytes(device),
        write_behind_bytes=config.write_behind_mb << 20,
        live=LiveOptions(RowPolicy(config.items_policy, config.items_keep_seconds), config.items_most_new),
        max_candidates=config.max_candidates,
    )
    return [dataclasses.replace(shared(options, model.share or 1.0), name=model.name) for model in config.served]


def ensemble_options(config: EnsembleConfig) -> EnsembleOptions:
    """One of [[ensembles]], with a client for each member that is elsewhere."""
    return EnsembleOptions(
        name=config.name,
        members=tuple(
            MemberOptions(
                member.model,
                member.weight,
                None
                if member.address is None
                else RemoteReplica(member.address, member.model, member.token_file, tls_to(member)),
            )
            for member in config.members
        ),
        merge=config.merge,
        budget_s=config.merge_budget_ms / 1000,
        min_members=config.min_members,
        calibration={task.task: Calibration(task.scale, task.shift) for task in config.calibration},
    )


def state_bytes(config: ServerConfig, cgroups: Cgroups = Cgroups()) -> int:  # noqa: B008 (it is frozen)
    """Memory of the host for the KV states of all models: as asked, or what the container leaves now."""
    if config.kv_budget_mb != "auto":
        return config.kv_budget_mb << 20
    buffers = config.write_behind_mb + config.log_cache_mb if config.redis_url else 0
    budget = budget_of_states(buffers << 20, USUAL_STATES_MB << 20, cgroups)
    logger.info("memory for KV states: %d MiB, threads: %d", budget >> 20, config.threads or owned_cores())
    return budget


def file_options(config: ServerConfig) -> FileLogOptions | None:
    """Of the event log in a file; None where it is elsewhere."""
    if config.log_place != "file":
        return None
    assert config.log_dir is not None and config.durability != "replica"
    return FileLogOptions(
        config.log_dir,
        config.durability,
        config.log_cache_mb << 20,
        on_damage=config.damaged_log,
        quarantine_s=config.quarantine_days * 86_400,
    )


def capture_of(config: ServerConfig, metrics: ServerMetrics) -> Capture | None:
    """What captures a sample of the requests; None where none are. ConfigError for a directory that cannot be used."""
    if config.capture_dir is None:
        return None
    options = CaptureOptions(
        config.capture_dir,
        user_tag,
        config.capture_sample,
        FileLimits(config.capture_mb << 20, config.capture_file_mb << 20, config.capture_max_age_days * 86_400),
        scores=config.capture_scores,
        caller=lambda: arrivals.current().caller,
        one_life=config.log_place == "redis",
    )
    return Capture(options, metrics.captures)


def log_budget(config: ServerConfig, cgroups: Cgroups = Cgroups()) -> LogBudget:  # noqa: B008 (it is frozen)
    """What a log in this process or in a file may hold: as asked, or what the memory or the disk leaves now."""
    if config.log_place == "redis":
        return LogBudget()
    if config.log_budget_mb != "auto":
        most = config.log_budget_mb << 20
    elif config.log_dir is None:
        most = available_bytes(cgroups) // 4
    else:
        most = budget_of_directory(config.log_dir)
    if most:
        what = "memory" if config.log_place == "memory" else "disk"
        logger.info("%s for histories: %d MiB, then new users: %s", what, most >> 20, config.log_when_full)
    return LogBudget(most, config.log_max_users, config.log_max_idle_s, config.log_when_full)


def loader(config: ServerConfig) -> Callable[[Path], Checkpoint]:
    """What reads a checkpoint as this server computes."""
    dtype, device = DTYPES[config.dtype], str(device_named(config.device))
    return lambda directory: checkpoint.load(directory, dtype, device)


def redis_options(config: ServerConfig) -> RedisOptions | None:
    """What the engine must know of Redis; None without one."""
    if config.redis_url is None:
        return None
    url = config.redis_url.get_secret_value()
    secret = read_secret(config.redis_secret_file)
    former = read_secret(config.redis_former_secret_file, "redis_former_secret_file")
    return RedisOptions(
        client=RedisSettings(
            url=url,
            timeout_s=config.redis_timeout_ms / 1000,
            write_timeout_s=config.redis_write_timeout_ms / 1000,
            max_connections=config.redis_connections,
        ),
        prefix=config.redis_prefix,
        holds_log=config.log_place == "redis",
        log=LogOptions(
            cache_bytes=config.log_cache_mb << 20,
            serve_stale=config.log_unreachable == "stale",
            on_damage=config.damaged_log,
            quarantine_s=config.quarantine_days * 86_400,
            secret=secret,
            former_secrets=() if former is None else (former,),
            must_be_signed=config.require_signed_logs,
            max_age_s=config.log_max_age_days * 86_400,
            durability=config.durability,
        ),
        state_dtype=None if config.redis_state_dtype == "auto" else PayloadDtype.from_name(config.redis_state_dtype),
        ttl_s=config.redis_state_ttl_s,
        budget_bytes=config.redis_budget_mb << 20,
        secret=secret,
    )


def language_model_options(config: ServerConfig) -> LanguageModelOptions | None:
    """The language model that may rerank; None without one. ConfigError for a key that is none."""
    if config.llm_url is None:
        return None
    assert config.llm_model is not None
    key, path = None, config.llm_key_file
    if path is not None:
        try:
            key = path.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"llm_key_file: cannot read {path}: {why}") from error
        if not key.isascii() or not key.isprintable() or not 1 <= len(key) <= MAX_KEY_CHARS:
            raise ConfigError(
                f"llm_key_file: got {len(key)} characters, must be 1 to {MAX_KEY_CHARS} printable ones of ASCII"
            )
    seconds = config.llm_timeout_ms / 1000
    return LanguageModelOptions(config.llm_url, config.llm_model, key, seconds, config.llm_concurrency)


def read_secret(path: Path | None, setting: str = "redis_secret_file") -> bytes | None:
    """What signs logs and chunks. ConfigError if the file cannot be read or holds too little."""
    if path is None:
        return None
    try:
        secret = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error.strerror}") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"{setting}: got {len(secret)} bytes, must be at least {MIN_SECRET_BYTES}")
    return secret


def serve(config: ServerConfig, build: Callable[[ServerConfig, ServerMetrics], ServedEngine] = build_engine) -> None:
    """Serve a checkpoint until a signal ends it."""
    log_to_stderr(config.log_format)
    name_users(config.log_user_ids, read_secret(config.log_key_file, "log_key_file"))
    metrics = ServerMetrics()
    trace_to(config.otlp_endpoint, metrics.spans, "engine" if config.frontends else "server")
    exit_code = 0
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run(lambda: build(config, metrics), config, metrics))
        if not any_beside():
            return
    except DeviceLost as error:
        logger.critical("%s; the server ends", error)
        exit_code = 1
    # A thread still loads, or the device hangs: native code must not meet an interpreter that is being taken down.
    flush_output()
    os._exit(exit_code)

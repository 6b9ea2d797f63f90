"""The composition root: engine, transports, the life of the process. Only this file sees the engine."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from mfalcon.backends.select import device_named, use_device
from mfalcon.beside import any_beside, beside
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import EngineFailure
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.redis.url import redacted
from server import banner
from server.config import ServerConfig
from server.logs import flush_or_forget, flush_output, log_to_stderr
from server.options import (
    capture_of,
    ensemble_options,
    file_options,
    language_model_options,
    loader,
    log_budget,
    model_options,
    read_secret,
    redis_options,
)
from server.pseudonym import name_users
from server.runtime import new_event_loop, settle
from server.service import ServedEngine, Service
from server.tracing import trace_to

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DeviceLost(EngineFailure):
    """What computes has died or hangs; the message says which. Only another process helps."""


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

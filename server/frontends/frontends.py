"""The front-ends of an engine's process: they are started, started again when they die, and drained."""

import asyncio
import logging
import os
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Counter

from mfalcon.errors import ConfigError
from mfalcon.pseudonym import OURS
from server.addresses import Addresses, authority, reserve
from server.config import PREFIX, ServerConfig
from server.frontends.engine_server import EngineServer
from server.frontends.fleet_metrics import FleetMetrics
from server.frontends.process import Orders
from server.handler import LOADING
from server.ranking_engine import RankingEngine
from server.transports import LAST_BYTES_SECONDS

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
MEMORY = "/dev/shm"
OF_THE_ENGINE = {
    *("redis_url", "redis_secret_file", "redis_former_secret_file", "require_signed_logs"),
    *("event_log", "log_dir", "append_durability", "log_key_file"),
    *("capture_dir", "capture_sample", "capture_mb", "capture_file_mb", "capture_max_age_days", "capture_scores"),
}
"""Settings that a front-end need not know; four of them are of secrets."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Before a front-end is started again: twice as long each time, until one has lived for longer than the longest."""
SERVE_SECONDS = 10.0
"""For front-ends to hear that there is an engine; one that is frozen shall not keep the others from serving."""
END_SECONDS = 5.0
"""For a front-end to end once its drain should be over."""


class Frontends:
    """Does what `Transports` does, in `config.frontends` processes of their own. Lives on one event loop."""

    def __init__(self, config: ServerConfig, registry: CollectorRegistry, restarts: Counter) -> None:
        """registry: of this process; /metrics of any front-end shows it with what all of them count. restarts: counts
        those of front-ends, by number.
        """
        self._config = config
        self._registry = registry
        self._restarts = restarts
        self._held = ExitStack()
        self._server: EngineServer | None = None
        self._fleet: FleetMetrics | None = None
        self._processes: dict[int, Process] = {}
        self._listening = [asyncio.Event() for _ in range(config.frontends)]
        self._serving = [asyncio.Event() for _ in range(config.frontends)]
        self._keeping: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def running(self) -> bool:
        """From the start until the last answer of a stop."""
        return self._server is not None

    @property
    def status(self) -> str:
        """What the server does, in a word or two."""
        if self._stopping.is_set():
            return "draining"
        if self._server is None:
            return LOADING
        return "ready" if self._server.ready else self._server.status

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return not self._stopping.is_set() and self._server is not None and self._server.ready

    async def scrape(self, *, open_metrics: bool = False) -> bytes:
        """What /metrics shows."""
        return b"" if self._fleet is None else await asyncio.to_thread(self._fleet.text, open_metrics=open_metrics)

    @property
    def pids(self) -> dict[int, int]:
        """Of the front-ends that live, by number."""
        return {number: process.pid for number, process in self._processes.items()}

    async def listen(self) -> Addresses:
        """Listen on both transports, by every front-end. ConfigError when an address is taken."""
        config = self._config
        try:
            directory = self._held.enter_context(_private_directory())
            http_port = _port(self._held.enter_context(reserve("http", config.http_host, config.http_port)))
            grpc_port = _port(self._held.enter_context(reserve("grpc", config.grpc_host, config.grpc_port)))
            settings = config.model_dump(mode="json", exclude=OF_THE_ENGINE, exclude_none=True)
            settings |= {"http_port": http_port, "grpc_port": grpc_port}
            orders = Orders(0, 0, directory, settings, OURS.key)
            fleet = self._fleet = FleetMetrics(self._registry, directory, lambda: self.pids)
            self._server = EngineServer(
                orders.endpoint,
                lambda name: self._listening[_number(name)].set(),
                lambda name: self._serving[_number(name)].set(),
                self._kill,
                lambda open_metrics: fleet.text(open_metrics=open_metrics),
                patience_s=config.frontend_stall_s,
            )
            self._keeping = [asyncio.create_task(self._keep(number, orders)) for number in range(config.frontends)]
            await self._all_listen()
        except BaseException:
            await self.stop()
            raise
        return Addresses(grpc=authority(config.grpc_host, grpc_port), http=authority(config.http_host, http_port))

    def wait_for_redis(self) -> None:
        """Say from now on that this is what an engine waits for."""
        assert self._server is not None
        self._server.wait_for_redis()

    async def serve(self, engine: RankingEngine) -> None:
        """Answer requests with an engine from now on, by every front-end that is well."""
        assert self._server is not None
        self._server.serve(engine)
        with suppress(TimeoutError):
            async with asyncio.timeout(SERVE_SECONDS):
                for serving in self._serving:
                    await serving.wait()

    def reopen_logs(self) -> None:
        """Front-ends see for themselves, every second, whether their file was moved."""

    async def stop(self) -> None:
        """Have every front-end drain, as `Transports.stop` does, and end."""
        self._stopping.set()
        for process in self._processes.values():
            _signal(process, kill=False)
        if self._keeping:
            config = self._config
            patience = config.drain_linger_s + config.drain_seconds + LAST_BYTES_SECONDS + END_SECONDS
            await asyncio.wait(self._keeping, timeout=patience)
            for process in self._processes.values():
                _signal(process, kill=True)
            await asyncio.wait(self._keeping)
        if self._server is not None:
            await self._server.close()
            self._server = None
        self._held.close()

    async def _all_listen(self) -> None:
        """Return when all listen. ConfigError when one ends before."""
        for listening, keeping in zip(self._listening, self._keeping, strict=True):
            waiting = asyncio.create_task(listening.wait())
            await asyncio.wait((waiting, keeping), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        if not all(listening.is_set() for listening in self._listening):
            raise ConfigError("frontends: one ended before it listened; the log has the cause")

    async def _keep(self, number: int, orders: Orders) -> None:
        """Have one front-end at all times."""
        assert self._server is not None
        pause = SHORTEST_PAUSE_S
        for life in count(1):
            began, orders = time.monotonic(), msgspec.structs.replace(orders, number=number, life=life)
            how = await self._live(orders)
            self._server.forget(orders.name)
            if self._stopping.is_set() or not self._listening[number].is_set():
                return
            pause = SHORTEST_PAUSE_S if time.monotonic() - began > LONGEST_PAUSE_S else min(2 * pause, LONGEST_PAUSE_S)
            self._restarts.labels(number).inc()
            logger.error("front-end %d %s; it is started again in %g s", number, how, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
                return

    def _kill(self, name: str) -> None:
        """Its connections are closed, so that its callers ask another one; it is started again."""
        number = _number(name)
        logger.error("front-end %d was not heard for %g s and is killed", number, self._config.frontend_stall_s)
        _signal(self._processes[number], kill=True)

    async def _live(self, orders: Orders) -> str:
        """One life of a front-end; returns how it ended."""
        # What is in our environment has become settings, and these are all that it shall know.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        command = (sys.executable, "-m", "server.frontends.process")
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=DEVNULL, cwd=ROOT, env=environment
            )
        except OSError as error:
            return f"could not be started: {error}"
        self._processes[orders.number] = process
        if self._stopping.is_set():
            _signal(process, kill=False)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(orders) + b"\n")  # and it stays open for as long as we live
        code = await process.wait()
        del self._processes[orders.number]
        process.stdin.close()
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _private_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory that only we may enter, in memory where there is such a place: counters shall not wait for a disk."""
    try:
        return tempfile.TemporaryDirectory(prefix="mfalcon-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None)
    except OSError as error:
        raise ConfigError(f"frontends: there is no directory for their socket: {error}") from error


def _port(sock: socket.socket) -> int:
    port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def _signal(process: Process, *, kill: bool) -> None:
    with suppress(ProcessLookupError):
        if kill:
            process.kill()
        else:
            process.terminate()

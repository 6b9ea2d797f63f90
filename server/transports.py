"""Both transports over one handler: what callers meet, in one process, from the first byte accepted to the last one."""

import asyncio
import math
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry

from mfalcon.errors import ConfigError
from mfalcon.metrics.exposition import Scrape, text_of
from mfalcon.metrics.line_metrics import LineMetrics
from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.stages import StageMetrics
from server.access.access import Access
from server.access_log import access_log
from server.addresses import Addresses, authority, listen, reserve
from server.arrivals import Arrivals
from server.config import ServerConfig
from server.grpc.api import GrpcServer
from server.grpc.bounds import Bounds
from server.handler import Handler
from server.http.api import create_app
from server.http.connection import ConnectionLimits
from server.http.console import Pages
from server.http.counted import CountedApp
from server.http.server import HttpServer
from server.limits import Limits
from server.ranking_engine import RankingEngine
from server.refusals import Refusals
from server.tls import Certificates
from server.tracing import Tracing
from server.turns import in_turns

LINGER_SECONDS = 0.3
"""Time for which a draining server still listens, so that callers read a refusal and balancers look elsewhere."""
SHARE_REFUSED = 4
"""One in so many of the calls, or of the connections of HTTP, may wait for an answer that names its fault."""
LAST_BYTES_SECONDS = 0.5
"""Time for answers already given to leave, before open streams (health watches) are cut."""


class CallMetrics(Protocol):
    """What is counted of calls, and where."""

    @property
    def registry(self) -> CollectorRegistry:
        """Where they are registered."""
        ...

    @property
    def requests(self) -> RequestMetrics:
        """What callers get."""
        ...

    @property
    def stages(self) -> StageMetrics:
        """Where the time goes."""
        ...

    @property
    def lines(self) -> LineMetrics:
        """What becomes of the lines of the access log."""
        ...


def connection_limits(config: ServerConfig) -> ConnectionLimits:
    """Of every HTTP port."""
    return ConnectionLimits(
        header_timeout_s=config.http_header_timeout_s,
        body_timeout_s=config.http_body_timeout_s,
        max_connections=config.http_connections,
        handshake_timeout_s=config.tls_handshake_timeout_s,
        max_head_bytes=config.max_metadata_bytes,
        handshakes_per_s=config.tls_handshakes_per_s,
    )


class Transports:
    """They listen first, refuse with NotReady, and answer once there is an engine."""

    def __init__(
        self,
        config: ServerConfig,
        metrics: CallMetrics,
        access: Access,
        scrape: Scrape | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """access: who may call. scrape: what /metrics shows; what is in the registry if not
        given. certificates: what TLS is spoken with, if any.
        """

        self._registry, self._scrape = metrics.registry, scrape
        self._config = config
        limits = Limits(
            max_candidates=config.max_candidates,
            max_events_per_append=config.max_events_per_append,
            max_ranks_per_batch=config.max_ranks_per_batch,
            max_appends_per_batch=config.max_appends_per_batch,
            max_recent_events=config.max_recent_events,
            max_events_per_page=config.max_events_per_page,
            max_user_id_bytes=config.max_user_id_bytes,
            request_timeout_ms=config.request_timeout_ms,
            late_events=config.late_events,
            max_clock_skew_ms=round(1000 * config.max_clock_skew_s),
        )
        self._handler = Handler(limits, access.gate)
        refused_by_grpc, refused_by_http = (
            Refusals(config.max_refusals_per_s, -(-most // SHARE_REFUSED), partial(metrics.requests.paced, name))
            for name, most in (("grpc", config.grpc_max_calls), ("http", config.http_connections))
        )
        tracing = None if config.otlp_endpoint is None else Tracing(config.trace_sample)
        self._access_log = access_log(config.access_log_options, metrics.lines)
        by_grpc, by_http = (
            Arrivals(name, metrics.requests, metrics.stages, self._access_log, tracing) for name in ("grpc", "http")
        )
        self._grpc = GrpcServer(
            self._handler,
            limits,
            Bounds(
                max_message_bytes=config.max_message_bytes,
                max_connections=config.grpc_max_connections,
                max_streams=config.grpc_max_streams,
                max_calls=config.grpc_max_calls,
                max_watches=config.grpc_max_watches,
                connection_age_s=config.grpc_connection_age_s,
                grace_ms=config.request_timeout_ms,
                max_metadata_bytes=config.max_metadata_bytes,
                has_reflection=config.reflection,
                unpacks=config.grpc_compression,
                handshake_ms=round(1000 * config.tls_handshake_timeout_s),
                shares_port=config.frontends > 0 or config.grpc_listen == "ready",
            ),
            by_grpc,
            access,
            certificates,
            refused_by_grpc,
        )
        app = create_app(
            self._handler,
            limits,
            config.max_message_bytes,
            self.scrape,
            access,
            Pages(config.console, config.console_users, config.api_docs),
            has_metrics=config.metrics_port is None,
            own_host=config.http_host if config.answers_anybody else None,
        )
        counted = CountedApp(app, by_http, refused_by_http)
        self._http = HttpServer(
            counted,
            connection_limits(config),
            None if certificates is None else lambda: certificates.context,
            math.ceil(config.drain_seconds + LAST_BYTES_SECONDS),
            counted.refused,
            metrics.requests.handshake_waited,
        )
        self._http_task: asyncio.Task[None] | None = None
        self._held = ExitStack()
        self._grpc_port = config.grpc_port
        self._has_engine = False

    @property
    def status(self) -> str:
        """What the server does, in a word or two."""
        return self._handler.status

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._handler.ready

    async def scrape(self, *, open_metrics: bool = False) -> bytes:
        """What /metrics shows."""
        if self._scrape is not None:
            return await self._scrape(open_metrics=open_metrics)
        # Beside the event loop: twenty models take 60 ms of it, in which nobody would be served.
        return await asyncio.to_thread(text_of, self._registry, open_metrics=open_metrics)

    @property
    def running(self) -> bool:
        """From the start until the last answer of a stop."""
        return self._http_task is not None and not self._http_task.done()

    async def listen(self) -> Addresses:
        """Listen on both transports, unless gRPC is to listen from `serve` on. ConfigError when an address is taken."""
        config = self._config
        http_socket = listen("http", config.http_host, config.http_port, shared=config.frontends > 0)
        try:
            if config.grpc_listen == "always":
                await self._listen_grpc()
            elif config.frontends == 0:  # or else the engine's process holds the port for all of them
                held = self._held.enter_context(reserve("grpc", config.grpc_host, config.grpc_port))
                self._grpc_port = held.getsockname()[1]
        except ConfigError:
            http_socket.close()
            raise
        http_port = http_socket.getsockname()[1]
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))
        await self._http.listening.wait()
        return Addresses(grpc=authority(config.grpc_host, self._grpc_port), http=authority(config.http_host, http_port))

    async def _listen_grpc(self) -> None:
        self._grpc_port = await self._grpc.start(self._config.grpc_host, self._grpc_port)

    def wait_for_redis(self) -> None:
        """Say from now on that this is what an engine waits for."""
        self._has_engine = True
        self._handler.wait_for_redis()

    async def serve(self, engine: RankingEngine) -> None:
        """Answer requests with an engine from now on."""
        self._has_engine = True
        self._handler.serve(engine)
        if self._config.grpc_listen == "ready":
            await self._listen_grpc()
        self.report()

    def report(self) -> None:
        """Tell health checks over gRPC whether the engine is ready."""
        self._grpc.report(serving=self._handler.ready)

    async def stop(self) -> None:
        """Say that the server leaves, and answer for `drain_linger_s` what comes all the same; then turn new requests
        away, and let those in flight finish within `drain_seconds`. gRPC that listens only while requests are answered
        closes its connections before any of them is refused.
        """
        assert self._http_task is not None
        drain_seconds = self._config.drain_seconds
        self._handler.leave()
        self._grpc.report_not_serving()
        if self._handler.serves:
            await asyncio.sleep(self._config.drain_linger_s)
        grpc_stopping: asyncio.Task[None] | None = None
        if self._config.grpc_listen == "ready" and self._handler.serves:
            grpc_stopping = self._stop_grpc(drain_seconds)
            await in_turns(LINGER_SECONDS)
        self._handler.drain()
        if self._has_engine:
            # A transport that stops drops calls that are on the wire without a word; let there be none by then.
            drain_seconds = max(0, drain_seconds - await in_turns(LINGER_SECONDS))
        self._http.should_exit = True
        grpc_stopping = grpc_stopping or self._stop_grpc(drain_seconds)
        try:
            await asyncio.wait_for(self._handler.wait_idle(), drain_seconds)
        except TimeoutError:
            self._handler.abort()
        await asyncio.wait({grpc_stopping}, timeout=LAST_BYTES_SECONDS)
        await self._grpc.stop(None)
        await asyncio.gather(grpc_stopping, self._http_task)
        self._held.close()
        if self._access_log is not None:
            await asyncio.to_thread(self._access_log.close)

    def reopen_logs(self) -> None:
        """Write the access log to the file that has its name now."""
        if self._access_log is not None:
            self._access_log.reopen()

    def _stop_grpc(self, grace: float) -> asyncio.Task[None]:
        return asyncio.create_task(self._grpc.stop(grace + LAST_BYTES_SECONDS))

"""A server's transports without sockets, around the small engine: what bytes of callers go through, on any loop."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import cast

import grpc
import grpc.aio
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from mfalcon.metrics.requests import RequestMetrics
from mfalcon.metrics.stages import StageMetrics
from server.access.access import Access
from server.arrivals import Arrivals
from server.grpc.api import SERVICE, ranking_service
from server.grpc.counted import CountedService
from server.grpc.open_calls import OpenCalls
from server.grpc.waiting import Waiting
from server.handler import Handler
from server.http.api import create_app
from server.http.connection import Connection, ConnectionLimits
from server.http.counted import CountedApp
from server.limits import Limits
from server.settings.access import AccessSettings
from tests.server.fake_engine import FakeEngine

LIMITS = Limits(
    max_candidates=200,
    max_events_per_append=100,
    max_appends_per_batch=10,
    max_recent_events=50,
    max_events_per_page=100,
    max_user_id_bytes=64,
    request_timeout_ms=60_000,
    max_clock_skew_ms=60_000,
)
MAX_BYTES = 1 << 20
LONGEST_S = 60.0
TURNS = 64
"""Of the loop: more than any request takes whose whole body is there."""


class Defect(Exception):
    """An answer that says more than it may, or none."""


class Complaints(logging.Handler):
    """What the server logs as a failure of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.heard.append(record)

    def raise_any(self) -> None:
        """Raise Defect for what was heard since the last time."""
        heard, self.heard = self.heard, []
        if heard:
            error = heard[0].exc_info[1] if heard[0].exc_info else None
            raise Defect(f"the server logged: {heard[0].getMessage()}") from error


@cache
def complaints() -> Complaints:
    """Of all loggers of the server, and of those whose servers it embeds."""
    handler = Complaints()
    for name in ("server", "mfalcon", "uvicorn.error", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    return handler


@cache
def _handler() -> Handler:
    return Handler(LIMITS)


def fresh_handler() -> Handler:
    """The one handler, around an engine that nobody has asked yet."""
    _handler().serve(FakeEngine())
    return _handler()


@cache
def _arrivals() -> Arrivals:
    registry = CollectorRegistry()
    return Arrivals("fuzz", RequestMetrics(registry), StageMetrics(registry))


class Call:
    """A call with one message, or none, as our methods use it; keeps how it ended."""

    def __init__(self, message: bytes | None, granted_s: float | None) -> None:
        self._messages = [] if message is None else [message]
        self._granted_s = granted_s
        self.ended: tuple[grpc.StatusCode, str] | None = None

    async def read(self) -> object:
        """The message, then the end."""
        return self._messages.pop() if self._messages else grpc.aio.EOF

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: object = ()) -> None:
        """The end of a call that failed."""
        self.ended = code, details
        raise grpc.aio.AbortError

    def code(self) -> grpc.StatusCode:
        """Of the end."""
        return grpc.StatusCode.OK if self.ended is None else self.ended[0]

    def time_remaining(self) -> float | None:
        """What the caller grants."""
        return self._granted_s

    def set_trailing_metadata(self, trailing_metadata: object) -> None:
        """What goes with an answer."""


class Details(grpc.HandlerCallDetails):
    """What a service learns of a call before its message."""

    def __init__(self, method: str, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        self.method = method
        self.invocation_metadata = tuple(metadata)


async def call(
    verb: str, message: bytes | None, metadata: Sequence[tuple[str, str | bytes]] = (), granted_s: float | None = None
) -> tuple[grpc.StatusCode, str, bytes]:
    """A gRPC call of the ranking service: status, details, and the answer if it is OK."""
    service = CountedService(
        SERVICE,
        ranking_service(fresh_handler(), LIMITS, Waiting(LONGEST_S, 16), Access(AccessSettings()), OpenCalls(16)),
        _arrivals(),
    )

    async def answered() -> tuple[grpc.StatusCode, str, bytes]:
        handler = service.service(Details(f"/{SERVICE}/{verb}", metadata))
        if handler is None:
            return grpc.StatusCode.UNIMPLEMENTED, "", b""
        context = Call(message, granted_s)
        try:
            method = cast(Callable[[object, Call], Awaitable[bytes]], handler.stream_unary)
            answer = await method(None, context)
        except grpc.aio.AbortError:
            assert context.ended is not None
            return *context.ended, b""
        return grpc.StatusCode.OK, "", answer

    return await asyncio.create_task(answered())


class Wire(asyncio.Transport):
    """Keeps what the server writes."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written += data

    def is_closing(self) -> bool:
        """Whether the server has hung up."""
        return self.closing

    def close(self) -> None:
        """The server hangs up."""
        self.closing = True

    def abort(self) -> None:
        """The server hangs up."""
        self.closing = True

    def get_write_buffer_size(self) -> int:
        """All of it is away."""
        return 0

    def pause_reading(self) -> None:
        """There is no more to read than what is given."""

    def resume_reading(self) -> None:
        """There is no more to read than what is given."""


@cache
def _http() -> tuple[CountedApp, uvicorn.Config]:
    async def no_metrics(*, open_metrics: bool = False) -> bytes:
        return b""

    app = CountedApp(create_app(_handler(), LIMITS, MAX_BYTES, no_metrics, Access(AccessSettings())), _arrivals())
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    return app, config


async def http(parts: Sequence[bytes]) -> bytes:
    """What a connection is answered to these bytes, which come one part after the other, before its client hangs up."""
    fresh_handler()
    app, config = _http()
    state, wire = ServerState(), Wire()
    limits = ConnectionLimits(header_timeout_s=LONGEST_S, body_timeout_s=LONGEST_S, max_connections=16)
    connection = Connection(config, state, limits, {}, app.refused)
    connection.connection_made(wire)
    for part in filter(None, parts):  # no socket gives nothing
        if wire.closing:
            break
        connection.data_received(part)
        await asyncio.sleep(0)
    for _ in range(TURNS):
        if not state.tasks:
            break
        await asyncio.sleep(0)
    connection.connection_lost(None)
    if state.tasks:
        _, left = await asyncio.wait(set(state.tasks), timeout=LONGEST_S)
        if left:
            raise Defect("a request is still in work although its client has left")
    return bytes(wire.written)

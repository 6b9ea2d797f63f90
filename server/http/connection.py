"""A connection: how long it may wait for its client, and what it answers where no application does."""

import asyncio
import http
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.http import codec
from server.http.wire import MAX_HEAD_BYTES, Wire
from server.oip.http_replies import inference_error, is_inference
from server.outcome import NOTHING_WRITTEN, UNKNOWN, Outcome
from server.peer_names import CLIENT_NAMES, names_over_http
from server.request_ids import REQUEST_ID, request_id_of

CODE: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    431: "RESOURCE_EXHAUSTED",
    501: "UNIMPLEMENTED",
}
REFUSED: Final = "refused"
"""In the state of a request: what its client was answered over the application's head."""
PIPELINE_REST_S: Final = 0.01
"""Who sends requests ahead of the answers waits so long before each: one connection cannot fill the event loop."""
NAMED: Final = "request_id"
"""In the state of a request: its name, once an application has heard of it."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a client may take for the head of a request, for its body or to read an answer, and for a TLS handshake;
    how many connections there may be, and how many bytes a head may have. handshakes_per_s: that are begun, 0 for all.
    """

    header_timeout_s: float
    body_timeout_s: float
    max_connections: int
    handshake_timeout_s: float = 10.0
    max_head_bytes: int = MAX_HEAD_BYTES
    handshakes_per_s: float = 0.0


class Awaited(Enum):
    """What a connection waits for; the last is the server's turn."""

    REQUEST = "the next request"
    HEAD = "the head of the request"
    BODY = "the body of the request"
    READER = "the client to read its answer"
    NOTHING = "nothing"


class Waiting(Protocol):
    """What waits for a client, and may have to make place."""

    def abort(self) -> None:
        """Close it at once."""
        ...


class Connection(H11Protocol):
    """uvicorn's, with timeouts and errors in JSON.

    waiting: holds the connections that wait for their clients, those first that do so for longest. refused: is called
    with the status of what no application has heard of.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        limits: ConnectionLimits,
        waiting: dict[Waiting, None],
        refused: Callable[[int], None],
    ) -> None:
        super().__init__(config, state, {})
        self.conn: Wire = Wire(limits.max_head_bytes)
        self._seconds: Mapping[Awaited, float] = {
            Awaited.HEAD: limits.header_timeout_s,
            Awaited.BODY: limits.body_timeout_s,
            Awaited.READER: limits.body_timeout_s,
        }
        self._waiting = waiting
        self._refused = refused
        self._is_tls = False
        self._is_lost = False
        self._awaited = Awaited.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It waits for a request from now on."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._is_tls = tls is not None
        if tls is not None:
            self.app_state[CLIENT_NAMES] = names_over_http(tls.getpeercert())
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It waits for nobody any more, whatever becomes of the requests that were in work: nobody holds it then."""
        self._await(Awaited.NOTHING)
        self._is_lost = True
        if self._rest is not None:
            self._rest.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it where the client has reset the connection

    def data_received(self, data: bytes) -> None:
        """Of the client."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Not before the client has read it; and if the next request is here already, not at once."""
        if self.conn.has_next_request and not self.transport.is_closing():
            self._rest = self.loop.call_later(PIPELINE_REST_S, self._go_on)
        super().on_response_complete()
        if self._rest is not None:
            self.flow.pause_reading()
        self._watch()

    def handle_events(self) -> None:
        """What was received, unless it has to wait."""
        if self._rest is None:
            super().handle_events()

    def _go_on(self) -> None:
        self._rest = None
        self.flow.resume_reading()
        self.handle_events()
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It does."""
        super().resume_writing()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """No next request came."""
        super().timeout_keep_alive_handler()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What h11 refuses."""
        error = self.conn.refusal
        if error is None:
            self._refuse(400, msg)
        else:
            self._refuse(error.error_status_hint, str(error).partition(": bytearray")[0])

    def shutdown(self) -> None:
        """Close it after what is in work."""
        if not self.transport.is_closing():
            super().shutdown()

    def abort(self) -> None:
        """Close it at once."""
        self.transport.abort()

    def _watch(self) -> None:
        """See what is awaited now."""
        # A TLS connection is closed once its client has agreed to that.
        is_left = self.transport.is_closing() and (self._is_tls or self.transport.get_write_buffer_size())
        if self.flow.write_paused or is_left:
            self._await(Awaited.READER)
        elif self.conn.their_state is h11.SEND_BODY:
            self._await(Awaited.BODY)
        elif self.conn.their_state is h11.IDLE:
            self._await(Awaited.HEAD if self.timeout_keep_alive_task is None else Awaited.REQUEST)
        else:
            self._await(Awaited.NOTHING)

    def _await(self, awaited: Awaited) -> None:
        if awaited is self._awaited or self._is_lost:
            return
        self._awaited = awaited
        if awaited is Awaited.NOTHING:
            self._waiting.pop(self, None)
        else:
            self._waiting.setdefault(self)
        if self._timer is not None:
            self._timer.cancel()
        seconds = self._seconds.get(awaited)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._awaited is Awaited.READER or self.conn.is_between_requests:
            self.abort()
        else:
            self._refuse(408, f"{self._awaited.value}: got no end within {self._seconds[self._awaited]:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """The last answer of this connection, given over the application's head; none where another has begun."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()
            return
        outcome: Outcome | None = None
        request_id = request_id_of(None)
        path = ""
        if self.cycle is None or self.cycle.response_complete:
            self._refused(status)
        else:
            method, path = self.cycle.scope["method"], self.cycle.scope["path"]
            if codec.is_write(method, path):  # an append begins when its body has come, a deletion wants none
                outcome = NOTHING_WRITTEN if method == "POST" and self.cycle.more_body else UNKNOWN
            self.cycle.scope["state"][REFUSED] = status
            request_id = self.cycle.scope["state"].get(NAMED, request_id)
            self.cycle.disconnected = True
        content = (
            inference_error(message)
            if is_inference(path)
            else codec.error_reply(CODE.get(status, "INVALID_ARGUMENT"), message, None, outcome)
        )
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
            (REQUEST_ID, request_id),
        ]
        head = h11.Response(status_code=status, headers=headers, reason=http.HTTPStatus(status).phrase)
        for event in (head, h11.Data(data=b"" if self.conn.wants_no_body else content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._watch()

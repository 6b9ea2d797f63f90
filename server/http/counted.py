"""Counts every request for a method of ours at the edge of HTTP, whatever its end."""

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfalcon.rank_key import RANK_KEY
from server import tracing
from server.arrivals import Arrivals
from server.http.connection import NAMED, REFUSED
from server.http.reading import CLIENT_CLOSED_REQUEST
from server.http.streaming import STREAMED
from server.peer_names import tell_client_names
from server.refusals import HTTP_FAULTS, Refusals
from server.request_ids import REQUEST_ID

VERBS: Final = frozenset(
    {
        "rank",
        "rank_batch",
        "rank_stream",
        "interests",
        "append_events",
        "append_batch",
        "get_history",
        "prefill",
        "delete_user",
        "get_model",
        "list_models",
        "model_infer",
        "model_ready",
        "model_metadata",
        "server_metadata",
    }
)
"""Endpoints of the service, by name; the others (probes, metrics, documents) are not counted."""
FAILED: Final = "500"
_KEY: Final = RANK_KEY.encode()
_REQUEST_ID: Final = REQUEST_ID.encode()
_TRACE: Final = {name.encode(): name for name in tracing.HEADERS}


class CountedApp:
    """An ASGI application around another. A request ends with the first line of its answer, one that is answered in
    lines with the last; one whose client has left before that is 499, whatever is then answered to nobody.
    """

    def __init__(self, app: ASGIApp, arrivals: Arrivals, refusals: Refusals | None = None) -> None:
        """refusals: where answers that name the caller's fault wait for their turn."""
        self._app = app
        self._arrivals = arrivals
        self._refusals = refusals

    def refused(self, status: int) -> None:
        """Count a request that is none, or never came whole: no application has heard of it."""
        self._arrivals.refused(str(status))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and count it. Over TLS its scope has the extension `tls` with the client's names."""
        tell_client_names(scope)
        keys = [value.decode("latin-1") for name, value in scope["headers"] if name == _KEY]
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == _REQUEST_ID), None)
        headers = {_TRACE[name]: value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE}
        arrival = self._arrivals.begin("", ",".join(keys), given, headers)
        scope["state"][NAMED] = arrival.request_id
        has_left = False

        def end(code: str) -> None:
            endpoint = scope.get("endpoint")  # none where no route fits
            if endpoint is not None:
                if endpoint.__name__ not in VERBS:
                    return
                arrival.verb = endpoint.__name__
            route = getattr(scope.get("route"), "path", "").replace(":any_text", "")
            arrival.route = f"{scope['method']} {route}" if route else str(scope["method"])
            arrival.scheme = scope["scheme"]
            if has_left:
                code = str(scope["state"].get(REFUSED, CLIENT_CLOSED_REQUEST))
            self._arrivals.end(arrival, code, answered=code.startswith("2"))

        async def received() -> Message:
            nonlocal has_left
            message = await receive()
            if message["type"] == "http.disconnect":
                has_left = True
            elif message.get("more_body", False):
                arrival.bytes_in += len(message["body"])
            else:
                arrival.received(len(message.get("body", b"")))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self._refusals is not None and message["status"] in HTTP_FAULTS:
                    await self._refusals.turn()
                lengths = [value for name, value in message["headers"] if name == b"content-length"]
                arrival.bytes_out = int(lengths[0]) if lengths else 0
                if STREAMED not in scope["state"]:
                    end(str(message["status"]))
                message["headers"] = [*message["headers"], (_REQUEST_ID, arrival.request_id.encode())]
            await send(message)
            if STREAMED in scope["state"] and message["type"] == "http.response.body":
                arrival.bytes_out += len(message["body"])
                if not message["more_body"]:
                    end(scope["state"][STREAMED])

        try:
            await self._app(scope, received, sent)
        finally:
            end(FAILED)  # of one that has an answer this says nothing more

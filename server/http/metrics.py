"""/metrics and the probes on a port of their own, in the engine's process."""

import asyncio
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from mfalcon.errors import MFalconError
from mfalcon.metrics.exposition import Scrape
from server.access.access import Access
from server.addresses import authority, listen
from server.http.answering import json_response
from server.http.api import NO_TELEMETRY, State, metrics_routes, probe_routes
from server.http.browsers import Browsers
from server.http.codec import error_reply
from server.http.connection import ConnectionLimits
from server.http.errors import on_error, on_failure
from server.http.guard import Guard
from server.http.server import HttpServer
from server.peer_names import CLIENT_NAMES, tell_client_names
from server.tls import Certificates

MAX_CONNECTIONS: Final = 64
CLOSE_WITHIN_S: Final = 1
SECRET: Final = "/metrics"


class Known:
    """Lets a client without a certificate have the probes alone where certificates are required: whoever restarts a
    server, as a node of Kubernetes, has none to show.
    """

    def __init__(self, app: ASGIApp, *, required: bool) -> None:
        self._app = app
        self._required = required

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        tell_client_names(scope)
        if self._required and scope["path"] == SECRET and not scope["state"].get(CLIENT_NAMES):
            message = "a client certificate: got none with a name, must be one of the authorities of tls_client_ca_file"
            response = json_response(error_reply("UNAUTHENTICATED", message, None), 401)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)


class MetricsServer:
    """An HTTP server beside the transports."""

    def __init__(
        self,
        state: State,
        scrape: Scrape,
        limits: ConnectionLimits,
        access: Access,
        certificates: Certificates | None,
        *,
        certificate_required: bool = False,
        own_host: str | None = None,
    ) -> None:
        """scrape: shows the metrics. access: who may have them. certificate_required: they need a client's
        certificate. own_host: see `Browsers`.
        """
        app = FastAPI(
            openapi_url=None,
            telemetry=NO_TELEMETRY,
            exception_handlers={MFalconError: on_error, Exception: on_failure},
        )
        app.include_router(probe_routes(state))
        app.include_router(metrics_routes(scrape))
        if access.is_on:
            app.add_middleware(Guard, access=access, on_error=on_error)
        app.add_middleware(Browsers, on_error=on_error, own_host=own_host)
        self._http = HttpServer(
            Known(app, required=certificate_required),
            limits,
            None if certificates is None else lambda: certificates.identity.probed,
            CLOSE_WITHIN_S,
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0 is any free one) and return the address. ConfigError when it is taken."""
        sock = listen("metrics", host, port)
        self._task = asyncio.create_task(self._http.serve(sockets=[sock]))
        await self._http.listening.wait()
        return authority(host, sock.getsockname()[1])

    async def stop(self) -> None:
        """End within a second."""
        if self._task is not None:
            self._http.should_exit = True
            await self._task

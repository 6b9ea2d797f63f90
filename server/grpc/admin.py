"""What operators call: mfalcon.v1.Admin on a port of its own, which is off unless it is set."""

from typing import Protocol

import grpc
import grpc.aio

from mfalcon.errors import CheckpointError, ConfigError
from proto import ranking_pb2
from server.access.access import Access
from server.access.caller import Right
from server.addresses import authority
from server.grpc import edge
from server.grpc.guard import guard_of
from server.grpc.ports import bind
from server.grpc.waiting import Waiting
from server.grpc.wire import MessageLimits
from server.reload import Reloaded
from server.tls import Certificates

SERVICE = ranking_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
WAIT_S = 10.0
"""Longest time that a message may take to arrive."""
MOST_WAITING = 16
"""Calls without a message at once."""
STATUS = {
    **edge.STATUS,
    CheckpointError: grpc.StatusCode.FAILED_PRECONDITION,
    ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
}


class Reloading(Protocol):
    """Who reloads."""

    async def reload(self, model: str, checkpoint: str) -> Reloaded:
        """See `server.reload.Reloads`."""
        ...


class AdminServer:
    """A grpc.aio server with the Admin service."""

    def __init__(self, reloads: Reloading, access: Access, certificates: Certificates | None = None) -> None:
        self._reloads = reloads
        self._certificates = certificates
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        limits = MessageLimits(ranking_pb2.ReloadRequest.DESCRIPTOR.full_name)
        waiting = Waiting(WAIT_S, MOST_WAITING)
        guard = guard_of(access, Right.ADMIN)
        reload = edge.raw_method(ranking_pb2.ReloadRequest, self._reload, limits, waiting, STATUS, guard=guard)
        methods = {"Reload": reload}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0 is any free one) and return the address. ConfigError when it is taken."""
        bound = bind(self._server, "admin", host, port, self._certificates)
        await self._server.start()
        return authority(host, bound)

    async def stop(self) -> None:
        """End at once: a reload that is under way has no answer."""
        await self._server.stop(None)

    async def _reload(self, message: ranking_pb2.ReloadRequest, time_left: float | None) -> bytes:
        done = await self._reloads.reload(message.model, message.checkpoint)
        return ranking_pb2.ReloadResponse(
            model=done.model, old_version=done.old_version, version=done.version, took_ms=done.took_ms
        ).SerializeToString()

"""What operators call: mfalcon.v1.Admin on a port of its own, which is off unless it is set."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import grpc
import grpc.aio

from mfalcon.errors import CheckpointError, ConfigError
from mfalcon.items.delta import Delta
from mfalcon.types import ItemsUpdated
from proto import ranking_pb2
from server.access.access import Access
from server.access.caller import Right
from server.addresses import authority
from server.grpc import edge, item_stream
from server.grpc.guard import guard_of
from server.grpc.item_stream import DeltaStreams
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


UpdateItems = Callable[[str, Delta], Awaitable[ItemsUpdated]]
"""Serves a model with other item rows, see `mfalcon.engine.engine.Engine`."""


class AdminServer:
    """A grpc.aio server with the Admin service."""

    def __init__(
        self,
        reloads: Reloading,
        access: Access,
        certificates: Certificates | None = None,
        update_items: UpdateItems | None = None,
    ) -> None:
        """update_items: without it there is no such method."""
        self._reloads = reloads
        self._streams = DeltaStreams()
        self._waiting = Waiting(WAIT_S, MOST_WAITING)
        self._guard = guard_of(access, Right.ADMIN)
        self._certificates = certificates
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        limits = MessageLimits(ranking_pb2.ReloadRequest.DESCRIPTOR.full_name)
        reload = edge.raw_method(
            ranking_pb2.ReloadRequest, self._reload, limits, self._waiting, STATUS, guard=self._guard
        )
        methods = {"Reload": reload}
        if update_items is not None:
            methods["UpdateItems"] = grpc.stream_unary_rpc_method_handler(partial(self._items, update_items))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))

    async def start(self, host: str, port: int) -> str:
        """Listen (port 0 is any free one) and return the address. ConfigError when it is taken."""
        bound = bind(self._server, "admin", host, port, self._certificates)
        await self._server.start()
        return authority(host, bound)

    async def stop(self) -> None:
        """End at once: a reload or a delta that is under way has no answer."""
        await self._server.stop(None)

    async def _items(self, update_items: UpdateItems, _: object, context: edge.Context) -> bytes:
        name = ranking_pb2.UpdateItemsRequest.DESCRIPTOR.full_name

        async def receive() -> tuple[ranking_pb2.UpdateItemsRequest, int] | None:
            raw = await self._waiting.message(context)
            if raw is None:
                return None
            return edge.parsed(raw, ranking_pb2.UpdateItemsRequest, item_stream.LIMITS), len(raw)

        async with edge.statuses(name, context, STATUS):
            self._guard(context)
            stream = await self._streams.read(receive)
            done = await update_items(stream.model, stream.delta())
            return ranking_pb2.UpdateItemsResponse(
                model=done.model,
                items_version=done.items_version,
                number=done.number,
                num_rows=done.num_rows,
                num_items=done.num_items,
            ).SerializeToString()
        raise AssertionError("statuses let an error pass")

    async def _reload(self, message: ranking_pb2.ReloadRequest, time_left: float | None) -> bytes:
        done = await self._reloads.reload(message.model, message.checkpoint)
        return ranking_pb2.ReloadResponse(
            model=done.model, old_version=done.old_version, version=done.version, took_ms=done.took_ms
        ).SerializeToString()

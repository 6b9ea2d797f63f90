"""The services of gRPC's own protocols, health and reflection, behind our edge.

As their packages write them they parse whatever they are sent, answer a malformed message with UNKNOWN, and keep every
watch. Their health service holds a lock while it writes: one watch that is not read would stop every other one, and
our drain.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mfalcon.errors import Overloaded
from server.grpc.edge import message_of, parsed, statuses
from server.grpc.guard import Guard, open_to_all
from server.grpc.waiting import Waiting
from server.grpc.wire import MessageLimits
from server.refusals import Refusals

Context = grpc.aio.ServicerContext[Any, Any]
"""Bytes come in, messages go out."""
Methods = dict[str, "grpc.RpcMethodHandler[bytes, Message]"]
MAX_REFLECTIONS: Final = 16
"""Calls of reflection at once, which are people's and their tools'."""
MAX_BYTES: Final = 4_096
"""Names of services and symbols: what these are asked is short."""
HEALTH = MessageLimits("grpc.health.v1.HealthCheckRequest", max_bytes=MAX_BYTES)
REFLECTION = MessageLimits("grpc.reflection.v1alpha.ServerReflectionRequest", max_bytes=MAX_BYTES)


class Health:
    """grpc.health.v1. waiting: where a request is waited for. refusals: see `GrpcServer`."""

    def __init__(self, max_watches: int, waiting: Waiting, refusals: Refusals | None = None) -> None:
        self._refusals = refusals
        self._status: dict[str, int] = {}
        """By name of the service."""
        self._has_left = False
        self._changed = asyncio.Event()
        """Of the next change; there is another one for the change after it."""
        self._max_watches = max_watches
        self._num_watches = 0
        self._waiting = waiting

    @property
    def methods(self) -> Methods:
        """What a server adds."""
        check: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_unary_rpc_method_handler(
            self._check, response_serializer=serialized
        )
        watch: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_stream_rpc_method_handler(
            self._watch, response_serializer=serialized
        )
        return {"Check": check, "Watch": watch}

    def set(self, service: str, *, serving: bool) -> None:
        """Say how a service is."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        if not self._has_left and self._status.get(service) != status:
            self._status[service] = status
            self._changed.set()
            self._changed = asyncio.Event()

    def leave(self) -> None:
        """Say of every service that it is NOT_SERVING, for good."""
        for service in self._status:
            self.set(service, serving=False)
        self._has_left = True

    async def _check(self, _: object, context: Context) -> health_pb2.HealthCheckResponse:
        async with statuses(HEALTH.name, context, refusals=self._refusals):
            request = await message_of(context, health_pb2.HealthCheckRequest, HEALTH, self._waiting)
            if request.service not in self._status:
                await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
            return health_pb2.HealthCheckResponse(status=self._status[request.service])
        raise AssertionError("statuses let an error pass")

    async def _watch(self, _: object, context: Context) -> None:
        async with statuses(HEALTH.name, context, refusals=self._refusals):
            request = await message_of(context, health_pb2.HealthCheckRequest, HEALTH, self._waiting)
            if self._num_watches >= self._max_watches:
                raise Overloaded(f"health watches: got {self._num_watches + 1}, must be at most {self._max_watches}")
            self._num_watches += 1
            try:
                await self._tell(request.service, context)
            finally:
                self._num_watches -= 1

    async def _tell(self, service: str, context: Context) -> None:
        """Every change of a service, for as long as its caller listens."""
        told = None
        while True:
            changed = self._changed
            status = self._status.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()


def reflection_of(
    services: Sequence[str], waiting: Waiting, guard: Guard = open_to_all, refusals: Refusals | None = None
) -> Methods:
    """Reflection on these services, for a server to add. waiting: where questions are waited for. guard: refuses who
    may not ask. refusals: see `GrpcServer`.
    """
    stock = reflection.aio.ReflectionServicer(services)
    places = asyncio.Semaphore(MAX_REFLECTIONS)

    async def info(_: object, context: Context) -> None:
        async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (raw := await waiting.message(context)) is not None:
                yield parsed(raw, reflection_pb2.ServerReflectionRequest, REFLECTION)

        async with statuses(REFLECTION.name, context, refusals=refusals):
            guard(context)
            if places.locked():
                raise Overloaded(
                    f"reflection: got {MAX_REFLECTIONS + 1} calls at once, must be at most {MAX_REFLECTIONS}"
                )
            async with places:
                answers = cast(AsyncIterable[Message], stock.ServerReflectionInfo(questions(), context))
                async for answer in answers:
                    await context.write(answer)

    method: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_stream_rpc_method_handler(
        info, response_serializer=serialized
    )
    return {"ServerReflectionInfo": method}


def serialized(message: Message) -> bytes:
    """What an answer is on the wire."""
    return message.SerializeToString()

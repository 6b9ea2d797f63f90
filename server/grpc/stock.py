"""The services that gRPC's own packages write, health and reflection, behind our edge.

As they come they parse whatever they are sent, answer a malformed message with UNKNOWN, and keep every watch.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from mfalcon.errors import Overloaded
from server.grpc.edge import message_of, parsed, received, statuses
from server.grpc.wire import MessageLimits

Context = grpc.aio.ServicerContext[Any, Any]
"""Bytes come in, messages go out."""
MAX_BYTES: Final = 4_096
"""Names of services and symbols: what these are asked is short."""
HEALTH = MessageLimits("grpc.health.v1.HealthCheckRequest", max_bytes=MAX_BYTES)
REFLECTION = MessageLimits("grpc.reflection.v1alpha.ServerReflectionRequest", max_bytes=MAX_BYTES)


class Health:
    """grpc.health.v1. wait_s: longest time that a request may take to arrive."""

    def __init__(self, max_watches: int, wait_s: float) -> None:
        self._stock = health.aio.HealthServicer()
        self._max_watches = max_watches
        self._num_watches = 0
        self._wait_s = wait_s

    @property
    def service(self) -> grpc.GenericRpcHandler:
        """What a server adds."""
        check: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_unary_rpc_method_handler(
            self._check, response_serializer=serialized
        )
        watch: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_stream_rpc_method_handler(
            self._watch, response_serializer=serialized
        )
        return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check, "Watch": watch})

    async def set(self, service: str, status: int) -> None:
        """Say how a service is."""
        await self._stock.set(service, status)

    async def leave(self) -> None:
        """Say of every service that it is NOT_SERVING, for good."""
        await self._stock.enter_graceful_shutdown()

    async def _check(self, _: object, context: Context) -> health_pb2.HealthCheckResponse:
        async with statuses(HEALTH.name, context):
            request = await message_of(context, health_pb2.HealthCheckRequest, HEALTH, self._wait_s)
            return await self._stock.Check(request, context)
        raise AssertionError("statuses let an error pass")

    async def _watch(self, _: object, context: Context) -> None:
        async with statuses(HEALTH.name, context):
            request = await message_of(context, health_pb2.HealthCheckRequest, HEALTH, self._wait_s)
            if self._num_watches >= self._max_watches:
                raise Overloaded(f"health watches: got {self._num_watches + 1}, must be at most {self._max_watches}")
            self._num_watches += 1
            try:
                await self._stock.Watch(request, context)
            finally:
                self._num_watches -= 1


def reflection_of(services: Sequence[str], wait_s: float) -> grpc.GenericRpcHandler:
    """Reflection on these services, for a server to add. wait_s: longest time between two questions."""
    stock = reflection.aio.ReflectionServicer(services)

    async def info(_: object, context: Context) -> None:
        async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (raw := await received(context, wait_s)) is not None:
                yield parsed(raw, reflection_pb2.ServerReflectionRequest, REFLECTION)

        async with statuses(REFLECTION.name, context):
            answers = cast(AsyncIterable[Message], stock.ServerReflectionInfo(questions(), context))
            async for answer in answers:
                await context.write(answer)

    method: grpc.RpcMethodHandler[bytes, Message] = grpc.stream_stream_rpc_method_handler(
        info, response_serializer=serialized
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": method})


def serialized(message: Message) -> bytes:
    """What an answer is on the wire."""
    return message.SerializeToString()

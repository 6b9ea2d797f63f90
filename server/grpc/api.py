"""The gRPC transport: mfalcon.v1.Ranking over the handler, with grpc.health.v1 and reflection.

Methods take and give raw bytes: stock grpc.aio answers a malformed message with UNKNOWN, we say INVALID_ARGUMENT.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mfalcon.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    LengthMismatch,
    MFalconError,
    NotReady,
    Overloaded,
    ShuttingDown,
    StorageUnavailable,
    UnknownModel,
)
from proto import ranking_pb2
from server.addresses import authority, listen
from server.grpc import codec
from server.handler import Handler

logger = logging.getLogger(__name__)

SERVICE: str = ranking_pb2.DESCRIPTOR.services_by_name["Ranking"].full_name

STATUS: Mapping[type[MFalconError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownModel: grpc.StatusCode.NOT_FOUND,
    LengthMismatch: grpc.StatusCode.FAILED_PRECONDITION,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotReady: grpc.StatusCode.UNAVAILABLE,
    ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    StorageUnavailable: grpc.StatusCode.UNAVAILABLE,
    EngineFailure: grpc.StatusCode.INTERNAL,
}

Context = grpc.aio.ServicerContext[bytes, bytes]
Method = Callable[[bytes, Context], Awaitable[bytes]]
Request = TypeVar("Request", bound=Message)


class RankingApi:
    """The five methods: message in, serialized message out; `time_left` is what the caller grants, in seconds."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def rank(self, message: ranking_pb2.RankRequest, time_left: float | None) -> bytes:
        """RankRequest -> RankResponse."""
        request = codec.rank_request(message)
        return codec.rank_response(await self._handler.rank(request, message.model, time_left))

    async def append_events(self, message: ranking_pb2.AppendEventsRequest, time_left: float | None) -> bytes:
        """AppendEventsRequest -> AppendEventsResponse."""
        expected_len = message.expected_len if message.HasField("expected_len") else None
        history_len = await self._handler.append_events(
            message.user_id, codec.events(message.events), expected_len, time_left
        )
        return ranking_pb2.AppendEventsResponse(history_len=history_len).SerializeToString()

    async def prefill(self, message: ranking_pb2.PrefillRequest, time_left: float | None) -> bytes:
        """PrefillRequest -> CacheInfo."""
        return codec.cache_info(
            await self._handler.prefill(message.user_id, message.model, time_left)
        ).SerializeToString()

    async def delete_user(self, message: ranking_pb2.DeleteUserRequest, time_left: float | None) -> bytes:
        """DeleteUserRequest -> DeleteUserResponse."""
        await self._handler.delete_user(message.user_id, time_left)
        return ranking_pb2.DeleteUserResponse().SerializeToString()

    async def get_model(self, message: ranking_pb2.GetModelRequest, time_left: float | None) -> bytes:
        """GetModelRequest -> GetModelResponse."""
        return codec.model_response(self._handler.model(message.model)).SerializeToString()

    async def list_models(self, message: ranking_pb2.ListModelsRequest, time_left: float | None) -> bytes:
        """ListModelsRequest -> ListModelsResponse."""
        models = map(codec.model_response, self._handler.models())
        return ranking_pb2.ListModelsResponse(models=models).SerializeToString()


def raw_method(
    message_type: type[Request],
    answer: Callable[[Request, float | None], Awaitable[bytes]],
    status: Mapping[type[MFalconError], grpc.StatusCode] = STATUS,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Wrap a method: parse, answer, and turn every error into a status."""

    async def method(raw: bytes, context: Context) -> bytes:
        try:
            return await answer(message_type.FromString(raw), context.time_remaining())
        except DecodeError:
            name = message_type.DESCRIPTOR.full_name
            code, text = grpc.StatusCode.INVALID_ARGUMENT, f"{name}: got {len(raw)} bytes that are no such message"
        except MFalconError as error:
            code, text = status.get(type(error), grpc.StatusCode.INTERNAL), str(error)
        except Exception:
            logger.exception("%s failed", message_type.DESCRIPTOR.full_name)
            code, text = grpc.StatusCode.INTERNAL, "the server failed on this request; its log has the cause"
        await context.abort(code, text)

    return grpc.unary_unary_rpc_method_handler(method)


class GrpcServer:
    """A grpc.aio server with the ranking service, its health and reflection."""

    def __init__(self, handler: Handler, max_message_bytes: int) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                # A second server on the same port must fail, not take half of the requests.
                ("grpc.so_reuseport", 0),
            )
        )
        api = RankingApi(handler)
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "Rank": raw_method(ranking_pb2.RankRequest, api.rank),
                        "AppendEvents": raw_method(ranking_pb2.AppendEventsRequest, api.append_events),
                        "Prefill": raw_method(ranking_pb2.PrefillRequest, api.prefill),
                        "DeleteUser": raw_method(ranking_pb2.DeleteUserRequest, api.delete_user),
                        "GetModel": raw_method(ranking_pb2.GetModelRequest, api.get_model),
                        "ListModels": raw_method(ranking_pb2.ListModelsRequest, api.list_models),
                    },
                ),
            )
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen (port 0 is any free one), report NOT_SERVING and return the port."""
        address = authority(host, port)
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            # gRPC does not say why; a plain socket does.
            listen("grpc", host, port).close()
            raise ConfigError(f"grpc_host, grpc_port: cannot listen on {address}") from error
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        return bound

    async def report_serving(self) -> None:
        """Tell health checks that requests are welcome."""
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def report_not_serving(self) -> None:
        """Tell health checks to send requests elsewhere, for good."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float | None) -> None:
        """Accept nothing more and return when every call has ended; after `grace` seconds they are cancelled."""
        await self._server.stop(grace)

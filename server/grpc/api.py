"""The gRPC transport: mfalcon.v1.Ranking over the handler, with grpc.health.v1 and reflection."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from mfalcon.returned import Returned
from mfalcon.text_ids import TextIds, compiled_hash
from mfalcon.types import Events, ModelRank, RankPart, RankRequest
from proto import ranking_pb2
from server.access.access import Access
from server.access.caller import RIGHT_OF
from server.arrivals import Arrivals, current
from server.balancing import LoadReport
from server.grpc import codec
from server.grpc.bounds import (
    Bounds,
    append_limits,
    batch_limits,
    interests_limits,
    prefill_limits,
    rank_batch_limits,
    rank_limits,
)
from server.grpc.counted import CountedService, verb_of
from server.grpc.edge import Answer, Request, raw_method, raw_stream_method
from server.grpc.failure import append_outcome, part_code, rank_outcome
from server.grpc.guard import guard_of
from server.grpc.open_calls import OpenCalls
from server.grpc.ports import bind
from server.grpc.stock import Health, reflection_of
from server.grpc.waiting import Waiting
from server.grpc.wire import MessageLimits
from server.handler import Handler
from server.limits import Limits
from server.oip.grpc_service import SERVICE as INFERENCE
from server.oip.grpc_service import inference_service
from server.refusals import Refusals
from server.tls import Certificates

SERVICE: str = ranking_pb2.DESCRIPTOR.services_by_name["Ranking"].full_name
MAX_EVENTS_ON_LOOP: Final = 1_024
"""More are converted in a thread beside: a microsecond each is too long for everybody else."""
MAX_TEXTS_ON_LOOP: Final = 4_096
"""The same of ids that are text, which take as much only where they were never seen."""
_SHARE_OF_A_CALLER: Final = 2
"""One in so many of the calls at once may be one caller's, where callers are known."""
_SHARE_WITHOUT_MESSAGE: Final = 4
"""One in so many of the calls at once may wait for its message."""


class RankingApi:
    """The methods: message in, serialized message out; `time_left` is what the caller grants, in seconds."""

    def __init__(self, handler: Handler, text_ids: TextIds) -> None:
        self._handler = handler
        self._text_ids = text_ids
        self._converter = ThreadPoolExecutor(1, thread_name_prefix="mfalcon-grpc")
        # A thread that is started when there is no memory left may never come up, and whoever starts it waits for it.
        self._converter.submit(int).result()

    async def rank(self, message: ranking_pb2.RankRequest, time_left: float | None) -> bytes:
        """RankRequest -> RankResponse."""
        request = await self._rank_request(message)
        result = await self._handler.rank(request, message.model, time_left)
        return codec.rank_response(result, Returned.of(result, request.returns))

    async def rank_stream(
        self,
        message: ranking_pb2.RankRequest,
        time_left: float | None,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """RankRequest -> RankPart, several."""

        async def write_part(part: RankPart) -> None:
            await write(codec.rank_part(part))

        request = await self._rank_request(message)
        await write(codec.last_part(await self._handler.rank_stream(request, message.model, time_left, write_part)))

    async def rank_batch(self, message: ranking_pb2.RankBatchRequest, time_left: float | None) -> bytes:
        """RankBatchRequest -> RankBatchResponse."""
        num = sum(len(each.recent_events) + len(each.candidate_ids) for each in message.requests)
        if num <= MAX_EVENTS_ON_LOOP:
            ranks = codec.model_ranks(message, self._text_ids)
        else:
            loop = asyncio.get_running_loop()
            ranks = await loop.run_in_executor(self._converter, codec.model_ranks, message, self._text_ids)
        outcomes = await self._handler.rank_batch(ranks, time_left)
        current().parts = Counter(map(part_code, outcomes))
        returns = [each.request.returns if isinstance(each, ModelRank) else "both" for each in ranks]
        return b"".join(map(rank_outcome, outcomes, returns))

    async def interests(self, message: ranking_pb2.InterestsRequest, time_left: float | None) -> bytes:
        """InterestsRequest -> InterestsResponse."""
        request = codec.interests_request(message, await self._events(message.recent_events, "recent_events"))
        return codec.interests_response(await self._handler.interests(request, message.model, time_left))

    async def append_events(self, message: ranking_pb2.AppendEventsRequest, time_left: float | None) -> bytes:
        """AppendEventsRequest -> AppendEventsResponse."""
        append = codec.append(message, await self._events(message.events, "events"))
        told = await self._handler.append_events(message.user_id, append, time_left)
        return codec.append_response(told).SerializeToString()

    async def append_batch(self, message: ranking_pb2.AppendBatchRequest, time_left: float | None) -> bytes:
        """AppendBatchRequest -> AppendBatchResponse."""
        if sum(len(each.events) for each in message.appends) <= MAX_EVENTS_ON_LOOP:
            appends = codec.user_appends(message, self._text_ids)
        else:
            loop = asyncio.get_running_loop()
            appends = await loop.run_in_executor(self._converter, codec.user_appends, message, self._text_ids)
        outcomes = await self._handler.append_batch(appends, time_left)
        current().parts = Counter(map(part_code, outcomes))
        return ranking_pb2.AppendBatchResponse(outcomes=map(append_outcome, outcomes)).SerializeToString()

    async def get_history(self, message: ranking_pb2.GetHistoryRequest, time_left: float | None) -> bytes:
        """GetHistoryRequest -> GetHistoryResponse."""
        return codec.history_response(await self._handler.get_history(codec.history_request(message), time_left))

    async def prefill(self, message: ranking_pb2.PrefillRequest, time_left: float | None) -> bytes:
        """PrefillRequest -> CacheInfo."""
        ahead = tuple(message.conditions), message.request_time_ms
        cache = await self._handler.prefill(message.user_id, message.model, time_left, *ahead)
        return codec.cache_info(cache).SerializeToString()

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

    async def _rank_request(self, message: ranking_pb2.RankRequest) -> RankRequest:
        events = await self._events(message.recent_events, "recent_events")
        if len(message.candidate_ids) <= MAX_TEXTS_ON_LOOP:
            return codec.rank_request(message, events, self._text_ids)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._converter, codec.rank_request, message, events, self._text_ids)

    async def _events(self, messages: Collection[ranking_pb2.Event], field: str) -> Events:
        """The array of these events, of many in a thread: it gives the interpreter back to the loop after 5 ms. One
        thread, because each that wants the interpreter makes the loop wait once more. Raises InvalidInput.
        """
        if len(messages) <= MAX_EVENTS_ON_LOOP:
            return codec.events(messages, field, self._text_ids)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._converter, codec.events, messages, field, self._text_ids)


class GrpcServer:
    """A grpc.aio server with the ranking service, its health and reflection."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        bounds: Bounds,
        arrivals: Arrivals,
        access: Access,
        certificates: Certificates | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        """refusals: where answers that name the caller's fault wait for their turn."""
        self._certificates = certificates
        self._server = grpc.aio.server(
            options=tuple(bounds.options().items()), maximum_concurrent_rpcs=bounds.max_calls
        )
        waiting = Waiting(limits.request_timeout_ms / 1000, -(-bounds.max_calls // _SHARE_WITHOUT_MESSAGE))
        calls = OpenCalls(-(-bounds.max_calls // _SHARE_OF_A_CALLER))
        self._health = Health(bounds.max_watches, waiting, refusals)
        services = [
            CountedService(SERVICE, ranking_service(handler, limits, waiting, access, calls, refusals), arrivals),
            CountedService(INFERENCE, inference_service(handler, limits, waiting, access, calls, refusals), arrivals),
        ]
        self._server.add_generic_rpc_handlers(services)
        # Each method that is registered has a queue of its own in gRPC: no rank stands behind thousands of watches.
        self._server.add_registered_method_handlers(health.SERVICE_NAME, self._health.methods)
        if bounds.has_reflection:
            names = (SERVICE, INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            asked = reflection_of(names, waiting, guard_of(access, None), refusals)
            self._server.add_registered_method_handlers(reflection.SERVICE_NAME, asked)

    async def start(self, host: str, port: int) -> int:
        """Listen (port 0 is any free one), report NOT_SERVING and return the port."""
        bound = bind(self._server, "grpc", host, port, self._certificates)
        self.report(serving=False)
        await self._server.start()
        return bound

    def report(self, *, serving: bool) -> None:
        """Tell health checks whether requests are welcome; after `report_not_serving` they never are."""
        for service in ("", SERVICE, INFERENCE):
            self._health.set(service, serving=serving)

    def report_not_serving(self) -> None:
        """Tell health checks to send requests elsewhere, for good."""
        self._health.leave()

    async def stop(self, grace: float | None) -> None:
        """Accept nothing more and return when every call has ended; after `grace` seconds they are cancelled."""
        await self._server.stop(grace)


def ranking_service(
    handler: Handler,
    limits: Limits,
    waiting: Waiting,
    access: Access,
    calls: OpenCalls,
    refusals: Refusals | None = None,
) -> grpc.GenericRpcHandler:
    """mfalcon.v1.Ranking. waiting: where messages are waited for. calls: see `guard_of`. refusals: see `GrpcServer`."""
    api, report = RankingApi(handler, TextIds(compiled_hash())), LoadReport(lambda: handler.load)

    def method(
        name: str,
        message_type: type[Request],
        answer: Answer[Request],
        most: MessageLimits | None = None,
        admit: Callable[[float | None], None] = lambda _: None,
        *,
        writes: bool = False,
    ) -> "tuple[str, grpc.RpcMethodHandler[bytes, bytes]]":
        guard = guard_of(access, RIGHT_OF[verb_of(name)], calls)
        limits = most or MessageLimits(message_type.DESCRIPTOR.full_name)
        served = raw_method(
            message_type,
            answer,
            limits,
            waiting,
            admit=admit,
            load=report.trailers,
            guard=guard,
            refusals=refusals,
            writes=writes,
        )
        return name, served

    stream = (
        "RankStream",
        raw_stream_method(
            ranking_pb2.RankRequest,
            api.rank_stream,
            rank_limits(limits),
            waiting,
            admit=handler.admit,
            load=report.trailers,
            guard=guard_of(access, RIGHT_OF["rank_stream"], calls),
            refusals=refusals,
        ),
    )
    return grpc.method_handlers_generic_handler(
        SERVICE,
        dict(
            (
                method("Rank", ranking_pb2.RankRequest, api.rank, rank_limits(limits), admit=handler.admit),
                stream,
                method(
                    "RankBatch",
                    ranking_pb2.RankBatchRequest,
                    api.rank_batch,
                    rank_batch_limits(limits),
                    admit=handler.admit,
                ),
                method(
                    "Interests",
                    ranking_pb2.InterestsRequest,
                    api.interests,
                    interests_limits(limits),
                    admit=handler.admit,
                ),
                method(
                    "AppendEvents",
                    ranking_pb2.AppendEventsRequest,
                    api.append_events,
                    append_limits(limits),
                    writes=True,
                ),
                method(
                    "AppendBatch",
                    ranking_pb2.AppendBatchRequest,
                    api.append_batch,
                    batch_limits(limits),
                    writes=True,
                ),
                method("GetHistory", ranking_pb2.GetHistoryRequest, api.get_history),
                method("Prefill", ranking_pb2.PrefillRequest, api.prefill, prefill_limits()),
                method("DeleteUser", ranking_pb2.DeleteUserRequest, api.delete_user, writes=True),
                method("GetModel", ranking_pb2.GetModelRequest, api.get_model),
                method("ListModels", ranking_pb2.ListModelsRequest, api.list_models),
            )
        ),
    )

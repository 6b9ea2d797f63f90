"""inference.GRPCInferenceService over the handler."""

from collections.abc import Callable
from functools import partial
from typing import Final

import grpc

from proto import inference_pb2 as pb
from server.access.access import Access
from server.access.caller import RIGHT_OF
from server.balancing import LoadReport
from server.grpc.counted import verb_of
from server.grpc.edge import Answer, Request, raw_method
from server.grpc.guard import guard_of, open_to_all
from server.grpc.open_calls import OpenCalls
from server.grpc.waiting import Waiting
from server.grpc.wire import MessageLimits
from server.handler import Handler
from server.limits import Limits
from server.oip import grpc_codec as codec
from server.oip.answer import EXTENSIONS, SERVER, VERSION
from server.oip.ranking import TensorRanking
from server.refusals import Refusals

SERVICE: Final[str] = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
OPEN: Final = frozenset({"ServerLive", "ServerReady"})
"""What anybody may ask, as of health: whoever runs the server must know how it is."""
MAX_BYTES: Final = 4_096
"""Names of models are short."""


class InferenceApi:
    """The methods: message in, serialized message out; `time_left` is what the caller grants, in seconds."""

    def __init__(self, ranking: TensorRanking) -> None:
        self._ranking = ranking

    async def server_live(self, message: pb.ServerLiveRequest, time_left: float | None) -> bytes:
        """ServerLiveRequest -> ServerLiveResponse."""
        return pb.ServerLiveResponse(live=True).SerializeToString()

    async def server_ready(self, message: pb.ServerReadyRequest, time_left: float | None) -> bytes:
        """ServerReadyRequest -> ServerReadyResponse."""
        return pb.ServerReadyResponse(ready=self._ranking.ready).SerializeToString()

    async def model_ready(self, message: pb.ModelReadyRequest, time_left: float | None) -> bytes:
        """ModelReadyRequest -> ModelReadyResponse."""
        ready = self._ranking.is_ready(message.name, message.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def server_metadata(self, message: pb.ServerMetadataRequest, time_left: float | None) -> bytes:
        """ServerMetadataRequest -> ServerMetadataResponse."""
        told = pb.ServerMetadataResponse(name=SERVER, version=VERSION, extensions=EXTENSIONS)
        return told.SerializeToString()

    async def model_metadata(self, message: pb.ModelMetadataRequest, time_left: float | None) -> bytes:
        """ModelMetadataRequest -> ModelMetadataResponse."""
        return codec.metadata(self._ranking.model(message.name, message.version)).SerializeToString()

    async def model_infer(self, message: pb.ModelInferRequest, time_left: float | None) -> bytes:
        """ModelInferRequest -> ModelInferResponse."""
        raw = bool(message.raw_input_contents)
        answer = await self._ranking.infer(partial(codec.question, message), message.ByteSize(), time_left)
        return codec.infer_response(answer, raw=raw)


def inference_service(
    handler: Handler,
    limits: Limits,
    waiting: Waiting,
    access: Access,
    calls: OpenCalls,
    refusals: Refusals | None = None,
) -> grpc.GenericRpcHandler:
    """The service, for a server to add. waiting, refusals: see `GrpcServer`. calls: see `guard_of`."""
    api, report = InferenceApi(TensorRanking(handler, limits)), LoadReport(lambda: handler.load)

    def method(
        name: str,
        message_type: type[Request],
        answer: Answer[Request],
        most: MessageLimits | None = None,
        admit: Callable[[float | None], None] = lambda _: None,
    ) -> "tuple[str, grpc.RpcMethodHandler[bytes, bytes]]":
        is_open = name in OPEN
        served = raw_method(
            message_type,
            answer,
            most or MessageLimits(message_type.DESCRIPTOR.full_name, max_bytes=MAX_BYTES),
            waiting,
            admit=admit,
            load=report.trailers,
            guard=open_to_all if is_open else guard_of(access, RIGHT_OF[verb_of(name)], calls),
            refusals=refusals,
        )
        return name, served

    methods = (
        method("ServerLive", pb.ServerLiveRequest, api.server_live),
        method("ServerReady", pb.ServerReadyRequest, api.server_ready),
        method("ModelReady", pb.ModelReadyRequest, api.model_ready),
        method("ServerMetadata", pb.ServerMetadataRequest, api.server_metadata),
        method("ModelMetadata", pb.ModelMetadataRequest, api.model_metadata),
        method("ModelInfer", pb.ModelInferRequest, api.model_infer, codec.infer_limits(limits), handler.admit),
    )
    return grpc.method_handlers_generic_handler(SERVICE, dict(methods))

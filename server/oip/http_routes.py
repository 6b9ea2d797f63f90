"""The protocol over HTTP: its paths under /v2."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Request, Response

from server.handler import Handler
from server.http import codec
from server.http.answering import Timeout, granted, json_response, seconds, while_connected
from server.http.fields import Reading
from server.http.reading import BodyReader, body_of, json_route
from server.limits import Limits
from server.oip.http_bodies import HEAD_LENGTH, Asked, infer_reply
from server.oip.http_replies import (
    PREFIX,
    InferenceErrorReply,
    InferReply,
    LiveReply,
    ModelMetadataReply,
    ReadyReply,
    ServerReply,
    metadata_reply,
    server_reply,
)
from server.oip.question import Question
from server.oip.ranking import TensorRanking

OCTETS: Final = "application/octet-stream"

ModelName = Annotated[str, Path(description="As /v1/models names it.")]
HeadLength = Annotated[
    str | None, Header(alias=HEAD_LENGTH, description="How many bytes of the body are JSON, if tensors follow it.")
]

ASKED: Final = {
    "requestBody": {
        "required": True,
        "description": "The tensors that the model's metadata names: docs/oip.md has each.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": {"type": "object"},
                        "inputs": {"type": "array", "items": {"type": "object"}},
                        "outputs": {"type": "array", "items": {"type": "object"}},
                    },
                }
            },
            OCTETS: {},
        },
    }
}


def ready_reply(*, is_ready: bool) -> Response:
    """Whether requests are welcome."""
    return json_response(codec.dump({"ready": is_ready}), 200 if is_ready else 503)


def inference_probe_routes(handler: Handler) -> APIRouter:
    """What anybody may ask."""
    router = APIRouter(prefix=PREFIX, tags=["probes"])

    @router.get("/health/live", response_model=LiveReply)
    async def server_live() -> Response:
        """200 while the process answers."""
        return json_response(codec.dump({"live": True}))

    @router.get("/health/ready", response_model=ReadyReply, responses={503: {"model": ReadyReply}})
    async def server_ready() -> Response:
        """200 while requests are welcome, as /readyz."""
        return ready_reply(is_ready=handler.ready)

    return router


def inference_routes(
    handler: Handler, limits: Limits, may_call: Callable[[str, Request], None], statuses: Mapping[int, str]
) -> APIRouter:
    """The paths. may_call: see `json_route`. statuses: of refusals, with the names of their codes."""
    ranking = TensorRanking(handler, limits)
    reading = Reading(limits)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": InferenceErrorReply, "description": code} for status, code in statuses.items()
    }
    router = APIRouter(
        prefix=PREFIX,
        tags=["open inference protocol"],
        route_class=json_route(BodyReader(limits), may_call),
        responses=refusals,
    )

    @router.get("", response_model=ServerReply)
    async def server_metadata() -> Response:
        """Describe the server."""
        return json_response(server_reply())

    @router.get("/models/{model_name}/versions/{version}", response_model=ModelMetadataReply)
    @router.get("/models/{model_name}", response_model=ModelMetadataReply)
    async def model_metadata(model_name: ModelName, version: str = "") -> Response:
        """Describe the tensors of a model."""
        return json_response(metadata_reply(ranking.model(model_name, version)))

    @router.get("/models/{model_name}/versions/{version}/ready", response_model=ReadyReply)
    @router.get("/models/{model_name}/ready", response_model=ReadyReply)
    async def model_ready(model_name: ModelName, version: str = "") -> Response:
        """200 while requests to a model are welcome."""
        return ready_reply(is_ready=ranking.is_ready(model_name, version))

    @router.post("/models/{model_name}/versions/{version}/infer", response_model=InferReply, openapi_extra=ASKED)
    @router.post("/models/{model_name}/infer", response_model=InferReply, openapi_extra=ASKED)
    async def model_infer(
        model_name: ModelName,
        request: Request,
        version: str = "",
        head_length: HeadLength = None,
        timeout_ms: Timeout = None,
    ) -> Response:
        """Rank: what /v1/rank does, with tensors."""
        raw = await body_of(request)
        handler.admit(granted(request))
        asked: list[Asked] = []

        def read() -> Question:
            asked.append(Asked(raw, head_length, reading))
            return asked[0].question(model_name, version)

        answer = await while_connected(request, ranking.infer(read, len(raw), seconds(timeout_ms)))
        content, num_json = infer_reply(answer, asked[0])
        if num_json is None:
            return json_response(content)
        return Response(content, headers={HEAD_LENGTH: str(num_json)}, media_type=OCTETS)

    return router

"""The HTTP transport: the gRPC methods under /v1 as JSON, over the same handler and the same limits."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final, Protocol
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse

from mfalcon.errors import InvalidInput, MFalconError
from mfalcon.metrics.exposition import Scrape, content_type, wants_open_metrics
from mfalcon.types import HistoryRequest, ModelRank
from server import arrivals
from server.access.access import Access
from server.access.caller import RIGHT_OF, Right
from server.balancing import LoadReport
from server.handler import Handler
from server.http import append_bodies as appends
from server.http import bodies, codec, fields, rank_replies, replies
from server.http.answering import Timeout, granted, json_response, seconds, while_connected
from server.http.browsers import Browsers
from server.http.console import Pages, console_routes, open_paths, page_routes
from server.http.errors import (
    REFUSALS,
    code_of,
    error_line,
    on_error,
    on_failure,
    on_framework_refusal,
    on_invalid_request,
    on_memory_error,
)
from server.http.guard import Guard, must
from server.http.middleware import BodyLimit, LastAnswer, LoadHeader
from server.http.openapi import describe_security
from server.http.reading import BodyReader, json_route
from server.http.streaming import StreamedRanking
from server.limits import Limits
from server.oip.http_routes import inference_probe_routes, inference_routes

METHODS_OF_A_USER: Mapping[bytes, str] = {b"events": "POST", b"history": "GET", b"prefill": "POST"}
"""What ends the path of each."""

NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own spans would stand between ours, and name users by their path."""

ModelName = Annotated[str, Query(description="The model's name; empty is the default one.")]


class AnyText(Convertor[str]):
    """A path parameter that takes slashes and line breaks too; Starlette's own would cut a trailing line break off."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """The text itself."""
        return value

    def to_string(self, value: str) -> str:
        """The text itself."""
        return value


register_url_convertor("any_text", AnyText())


def create_app(
    handler: Handler,
    limits: Limits,
    max_body_bytes: int,
    scrape: Scrape,
    access: Access,
    pages: Pages = Pages(),  # noqa: B008 (it is frozen)
    *,
    has_metrics: bool = True,
    own_host: str | None = None,
) -> FastAPI:
    """The whole application. scrape: shows the metrics. pages: for people. has_metrics: whether /metrics is here, and
    not on a port of its own. own_host: see `Browsers`.
    """
    app = FastAPI(
        title="mfalcon",
        summary="Online ranking with generative rankers.",
        description="The same service as mfalcon.v1.Ranking over gRPC, with the same field names and limits.",
        version="1",
        openapi_url="/openapi.json" if pages.api_docs else None,
        docs_url=None,  # FastAPI's own loads scripts from a CDN
        redoc_url=None,
        telemetry=NO_TELEMETRY,
        exception_handlers={
            MFalconError: on_error,
            RequestValidationError: on_invalid_request,
            HTTPException: on_framework_refusal,
            MemoryError: on_memory_error,
            Exception: on_failure,
        },
    )
    app.include_router(probe_routes(handler))
    app.include_router(ranking_routes(handler, limits, access))
    app.include_router(inference_probe_routes(handler))
    app.include_router(inference_routes(handler, limits, caller_check(access), REFUSALS))
    if has_metrics:
        app.include_router(metrics_routes(scrape))
    if pages.console:
        app.include_router(console_routes(handler, limits, pages, scrape))
    if pages.console or pages.api_docs:
        app.include_router(page_routes(pages))
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    if access.is_on:
        app.add_middleware(Guard, access=access, on_error=on_error, open_paths=open_paths(pages))
        describe_security(app, open_paths(pages))
    app.add_middleware(Browsers, on_error=on_error, own_host=own_host)
    app.add_middleware(LastAnswer, handler=handler)
    app.add_middleware(LoadHeader, report=LoadReport(lambda: handler.load))
    return app


class State(Protocol):
    """How the server is."""

    @property
    def status(self) -> str:
        """In a word or two."""
        ...

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        ...


def probe_routes(state: State) -> APIRouter:
    """Whether the process lives and whether it wants requests."""
    router = APIRouter(tags=["probes"])

    @router.get("/livez", response_model=replies.StatusReply)
    async def livez() -> Response:
        """200 while the process answers."""
        return json_response(codec.dump({"status": "ok"}))

    @router.get("/readyz", response_model=replies.StatusReply, responses={503: {"model": replies.StatusReply}})
    async def readyz() -> Response:
        """200 while new requests are welcome, 503 while the server loads, waits for Redis or shuts down."""
        return json_response(codec.dump({"status": state.status}), status=200 if state.ready else 503)

    return router


def metrics_routes(scrape: Scrape) -> APIRouter:
    """What Prometheus scrapes."""
    router = APIRouter(tags=["probes"])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Counters, gauges and histograms in Prometheus' text format, or OpenMetrics, which has exemplars."""
        must(request, Right.METRICS)
        open_metrics = wants_open_metrics(request.headers.get("accept", ""))
        text = await scrape(open_metrics=open_metrics)
        return Response(text, media_type=content_type(open_metrics=open_metrics))

    return router


def ranking_routes(handler: Handler, limits: Limits, access: Access) -> APIRouter:
    """The methods of the service."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": replies.ErrorReply, "description": code} for status, code in REFUSALS.items()
    }
    reader = BodyReader(limits, lambda request: handler.admit(granted(request)), lambda: handler.action_bits)
    route_class = json_route(reader, caller_check(access))
    router = APIRouter(prefix="/v1", tags=["ranking"], route_class=route_class, responses=refusals)

    @router.post("/rank", response_model=rank_replies.RankReply)
    async def rank(body: bodies.RankBody, request: Request, timeout_ms: Timeout = None) -> Response:
        """Score the candidates against the user's history."""
        asked = body.request()
        result = await while_connected(request, handler.rank(asked, body.model, seconds(timeout_ms)))
        return json_response(codec.rank_reply(result, asked.returns))

    @router.post(
        "/rank/stream", status_code=200, response_model=rank_replies.RankStreamReply, response_class=StreamedRanking
    )
    async def rank_stream(body: bodies.RankBody, timeout_ms: Timeout = None) -> Response:
        """Score the candidates as /v1/rank does, and send scores as they come: a line of JSON for each part, in the
        order of the candidates, and a last one with `answer` or `error`.
        """
        asked, time_left = body.request(), seconds(timeout_ms)
        return StreamedRanking(partial(handler.rank_stream, asked, body.model, time_left), error_line)

    @router.post("/rank/batch", response_model=rank_replies.RankBatchReply)
    async def rank_batch(body: bodies.RankBatchBody, request: Request, timeout_ms: Timeout = None) -> Response:
        """Score candidates for several users, each rank by itself: what is wrong with one touches no other."""
        ranking = handler.rank_batch(body.requests, seconds(timeout_ms))
        outcomes = await while_connected(request, ranking)
        arrivals.current().parts = Counter(map(code_of, outcomes))
        returns = [each.request.returns if isinstance(each, ModelRank) else "both" for each in body.requests]
        return json_response(codec.rank_batch_reply(outcomes, returns, code_of))

    @router.post("/interests", response_model=rank_replies.InterestsReply)
    async def interests(body: bodies.InterestsBody, request: Request, timeout_ms: Timeout = None) -> Response:
        """The user's interests under conditions, and the items nearest to them."""
        found = await while_connected(request, handler.interests(body.request(), body.model, seconds(timeout_ms)))
        return json_response(codec.interests_reply(found))

    @router.post("/users/{user_id:any_text}/events", response_model=replies.AppendEventsReply)
    async def append_events(
        body: appends.AppendEventsBody,
        request: Request,
        user_id: Annotated[str, Depends(strict_user_id)],
        timeout_ms: Timeout = None,
    ) -> Response:
        """Add events to the user's history: all of them, or none; late ones go where `late_events` says."""
        appending = handler.append_events(user_id, body.append(), seconds(timeout_ms))
        return json_response(codec.append_reply(await while_connected(request, appending)))

    @router.post("/events", response_model=replies.AppendBatchReply)
    async def append_batch(body: appends.AppendBatchBody, request: Request, timeout_ms: Timeout = None) -> Response:
        """Add events to the histories of many users, each append by itself: what is wrong with one touches no other."""
        outcomes = await while_connected(request, handler.append_batch(body.appends, seconds(timeout_ms)))
        arrivals.current().parts = Counter(map(code_of, outcomes))
        return json_response(codec.batch_reply(outcomes, code_of))

    @router.get("/users/{user_id:any_text}/history", response_model=replies.HistoryReply)
    async def get_history(
        request: Request,
        user_id: Annotated[str, Depends(strict_user_id)],
        first: Annotated[int, Query(ge=0, le=2**64 - 1, description="The position of the page's first event.")] = 0,
        limit: Annotated[int, Query(ge=0, le=2**32 - 1, description="Most events; 0 for as many as may be.")] = 0,
        expected_version: Annotated[
            fields.Version | None,
            Query(description="Of the history that you know; if it is another, there is no page."),
        ] = None,
        with_states: Annotated[bool, Query(description="Tell which KV states there are, too.")] = False,
        timeout_ms: Timeout = None,
    ) -> Response:
        """Read a page of the user's history back."""
        version = None if expected_version is None else bytes.fromhex(expected_version)
        reading = handler.get_history(HistoryRequest(user_id, first, limit, version, with_states), seconds(timeout_ms))
        return json_response(codec.history_reply(await while_connected(request, reading)))

    @router.post("/users/{user_id:any_text}/prefill", response_model=rank_replies.CacheReply)
    async def prefill(
        request: Request,
        user_id: Annotated[str, Depends(strict_user_id)],
        model: ModelName = "",
        condition: Annotated[
            list[str] | None, Query(description="Compute this interest ahead too, of a model that has conditions.")
        ] = None,
        request_time_ms: Annotated[
            int, Query(ge=-(2**63), le=2**63 - 1, description="The time that the interests are of; 0 is the server's.")
        ] = 0,
        timeout_ms: Timeout = None,
    ) -> Response:
        """Encode the user's history now, so that the next rank need not."""
        prefilling = handler.prefill(user_id, model, seconds(timeout_ms), tuple(condition or ()), request_time_ms)
        cache = await while_connected(request, prefilling)
        return json_response(codec.cache_reply(cache))

    @router.delete("/users/{user_id:any_text}", response_model=replies.DeleteUserReply)
    async def delete_user(
        request: Request, user_id: Annotated[str, Depends(strict_user_id)], timeout_ms: Timeout = None
    ) -> Response:
        """Forget the user: history and every KV state."""
        refuse_delete_of(request.scope["raw_path"])
        await while_connected(request, handler.delete_user(user_id, seconds(timeout_ms)))
        return json_response(codec.dump({}))

    @router.get("/model", response_model=replies.ModelReply)
    async def get_model(model: ModelName = "") -> Response:
        """Describe a served model."""
        return json_response(codec.model_reply(handler.model(model)))

    @router.get("/models", response_model=replies.ModelsReply)
    async def list_models() -> Response:
        """Describe every served model, the default one first."""
        return json_response(codec.models_reply(handler.models()))

    return router


def caller_check(access: Access) -> Callable[[str, Request], None]:
    """What raises PermissionDenied for who may not call an endpoint, and Overloaded for who is over his rate."""

    def may_call(verb: str, request: Request) -> None:
        must(request, RIGHT_OF[verb])
        access.gate.check(arrivals.current().caller)

    return may_call


async def strict_user_id(user_id: str, request: Request) -> str:
    """The user id of the path. ASGI replaces bytes that are not UTF-8, so that two users would become one."""
    if "\N{REPLACEMENT CHARACTER}" in user_id:
        try:
            unquote_to_bytes(request.scope["raw_path"]).decode()
        except UnicodeDecodeError as error:
            raise InvalidInput("user_id", user_id, "UTF-8, percent-encoded") from error
    return user_id


def refuse_delete_of(raw_path: bytes) -> None:
    """Raise 405 for the path of another method: with slashes as they are, it would be a user of a longer id."""
    allowed = METHODS_OF_A_USER.get(raw_path.rpartition(b"/")[2])
    if allowed is not None and raw_path.count(b"/") > 3:
        raise HTTPException(405, headers={"Allow": allowed})

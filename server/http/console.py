"""Pages for people over HTTP: the console at /, the description of the API at /docs, and what the console asks for
beside the API itself.

The files of the pages tell nothing about anybody, so they are everybody's; all that they show is asked for by the same
rights as elsewhere.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from mfalcon.clock import now_ms
from mfalcon.types import Ids, Items, ItemsRequest
from server import limits
from server.access.caller import Right
from server.console.assets import HEADERS, Asset, read_assets
from server.console.live import Live
from server.handler import Handler
from server.http import codec
from server.http.fields import ItemId, RequestBody, Uint32, list_as_array, to_ids
from server.http.guard import may, must
from server.http.reading import BodyReader, json_route
from server.limits import Limits

MOST_SAMPLED = 1_000
RIGHTS = {"console_live": Right.METRICS, "console_items": Right.RANK}
"""By endpoint: what its caller needs. The other one tells what everybody may know who is a caller at all."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Which there are. users: examples that the console offers."""

    console: bool = True
    users: tuple[str, ...] = ()
    api_docs: bool = True


class ItemsBody(RequestBody):
    """Items whose titles are wanted, and how many more of the model's."""

    model: str = ""
    item_ids: Annotated[
        Ids, list_as_array(ItemId, to_ids, lambda ids, most: limits.check_num_items(ids, most.max_candidates))
    ] = Field(default_factory=lambda: to_ids([]))
    sample: Annotated[int, Field(ge=0, le=MOST_SAMPLED)] = 0
    seed: Uint32 = 0

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of the ids and the names around them."""
        return most.max_candidates + 64

    def request(self) -> ItemsRequest:
        """In the project's words."""
        return ItemsRequest(self.model, self.item_ids, self.sample, self.seed)


def page_routes(pages: Pages) -> APIRouter:
    """The files of the pages."""
    assets = read_assets()
    router = APIRouter(include_in_schema=False)

    if pages.console:

        @router.get("/")
        async def console(request: Request) -> Response:
            return file_response(assets["index.html"], request)

    if pages.api_docs:

        @router.get("/docs")
        async def api_docs(request: Request) -> Response:
            return file_response(assets["docs.html"], request)

    @router.get("/console/{name}")
    async def console_file(name: str, request: Request) -> Response:
        return file_response(found(assets, name), request)

    return router


def open_paths(pages: Pages) -> frozenset[str]:
    """Of the files that are served: whoever has no token yet must be able to type one."""
    there = {
        "/": pages.console,
        "/docs": pages.api_docs,
        **dict.fromkeys(map("/console/{}".format, read_assets()), True),
    }
    return frozenset(path for path, is_there in there.items() if is_there)


def console_routes(handler: Handler, limits: Limits, pages: Pages, scrape: Callable[[], Awaitable[bytes]]) -> APIRouter:
    """What the console asks for. scrape: gives the metrics in Prometheus' text format."""
    live = Live(scrape)
    route_class = json_route(BodyReader(limits), may_call)
    router = APIRouter(prefix="/console/api", include_in_schema=False, route_class=route_class)

    @router.get("/info")
    async def console_info(request: Request) -> Response:
        """How the server is, its clock, and, for who may rank, whom to look at first."""
        users = pages.users if may(request, Right.RANK) else ()
        facts = {"status": handler.status, "now_ms": now_ms(), "users": users, "docs": pages.api_docs}
        return data_response(facts)

    @router.get("/live")
    async def console_live(request: Request) -> Response:
        """The present metrics."""
        return data_response({"status": handler.status, **await live.now()})

    @router.post("/items")
    async def console_items(body: ItemsBody, request: Request) -> Response:
        """Titles of items, and a sample of the model's. Ids are texts: a browser's numbers end at 2^53."""
        return data_response(items_fields(await handler.items(body.request())))

    return router


def may_call(endpoint: str, request: Request) -> None:
    """Raise PermissionDenied for who may not: before a body is read."""
    right = RIGHTS.get(endpoint)
    if right is not None:
        must(request, right)


def items_fields(items: Items) -> dict[str, object]:
    """Rows [id, title]."""
    names = map(str, codec.told_ids(items.item_ids, items.texts))
    rows = zip(names, items.titles, strict=True)
    return {"num_items": items.num_items, "items": list(rows)}


def found(assets: Mapping[str, Asset], name: str) -> Asset:
    """The file of a name. Raises HTTPException."""
    if name not in assets:
        raise HTTPException(404, "Not Found")
    return assets[name]


def file_response(asset: Asset, request: Request) -> Response:
    """A file, in gzip where that is understood; nothing if the browser has it."""
    headers = {**HEADERS, "etag": asset.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(asset.packed, headers=headers | {"content-encoding": "gzip"}, media_type=asset.media_type)
    return Response(asset.body, headers=headers, media_type=asset.media_type)


def data_response(content: object) -> Response:
    """JSON that nobody keeps."""
    return Response(
        codec.dump(content), headers={**HEADERS, "cache-control": "no-store"}, media_type="application/json"
    )

"""Routes whose JSON bodies are read within limits, and beside the event loop where they are large."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mfalcon.errors import InvalidInput
from server.http.bodies import InterestsBody, RankBatchBody, RankBody
from server.http.fields import Reading, RequestBody, parse
from server.limits import Limits

CLIENT_CLOSED_REQUEST = 499
PLAIN = "identity"
MAX_BYTES_ON_THE_LOOP = 2**16


class BodyReader:
    """Reads bodies, the large ones in one thread: the event loop never waits behind several for the interpreter."""

    def __init__(
        self,
        limits: Limits,
        admit: Callable[[Request], None] = lambda _: None,
        actions: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """admit: refuses a rank, or interests, before it is parsed. actions: see `Reading`."""
        self._reading = Reading(limits, actions=actions)
        self._admit = admit
        self._thread = ThreadPoolExecutor(1, "mfalcon-json")
        # Started now: one that is started when there is no memory left may never come up.
        self._thread.submit(int).result()

    async def read(self, request: Request, kind: type[RequestBody]) -> RequestBody | None:
        """The body of the request, None if there is none. Raises InvalidInput."""
        raw = await body_of(request)
        if not raw:
            return None
        if issubclass(kind, RankBody | RankBatchBody | InterestsBody):
            self._admit(request)
        if len(raw) <= MAX_BYTES_ON_THE_LOOP:
            return parse(kind, raw, self._reading)
        return await asyncio.get_running_loop().run_in_executor(self._thread, parse, kind, raw, self._reading)


async def body_of(request: Request) -> bytes:
    """All of a body. Raises InvalidInput for one that is compressed."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise HTTPException(CLIENT_CLOSED_REQUEST, "the client closed the connection") from error
    encoding = request.headers.get("content-encoding", PLAIN)
    if raw and encoding.strip().lower() != PLAIN:
        raise InvalidInput("content-encoding", encoding[:80], f"{PLAIN}: bodies are not decompressed")
    return raw


class JsonRequest(Request):
    """A request whose body was read; FastAPI takes what is of the declared type already as it is."""

    read: RequestBody | None = None

    async def json(self) -> Any:
        """What was read."""
        return self.read


def json_route(reader: BodyReader, may_call: Callable[[str, Request], None] = lambda verb, _: None) -> type[APIRoute]:
    """Routes whose bodies the reader reads. FastAPI describes them, and checks their content type. may_call: refuses
    who may not call an endpoint of this name, before its body is read.
    """

    class JsonRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            inner, verb = super().get_route_handler(), self.endpoint.__name__
            if self.body_field is None:

                async def handle_without(request: Request) -> Response:
                    may_call(verb, request)
                    return await inner(request)

                return handle_without
            kind = self.body_field.field_info.annotation
            assert isinstance(kind, type) and issubclass(kind, RequestBody)

            async def handle(request: Request) -> Response:
                may_call(verb, request)
                json_request = JsonRequest(request.scope, request.receive)
                json_request.read = await reader.read(json_request, kind)
                return await inner(json_request)

            return handle

    return JsonRoute

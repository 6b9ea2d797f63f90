"""Who calls over HTTP, and whether he may: looked at before anything of the body is read."""

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mfalcon.errors import Unauthenticated
from server import arrivals
from server.access.access import Access
from server.access.caller import Caller, Right
from server.peer_names import CLIENT_NAMES, Names

OPEN: Final = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths that anybody may ask: whoever runs the server must know how it is."""
CALLER: Final = "mfalcon.caller"
"""In the scope of a request: its `Caller`, where one is needed."""
_AUTHORIZATION: Final = b"authorization"


class Guard:
    """Middleware that lets known callers pass, and nobody else to any path but the open ones: a route that is added
    some day is behind it too.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        on_error: Callable[[Request, Exception], Awaitable[Response]],
        open_paths: frozenset[str] = frozenset(),
    ) -> None:
        """on_error: makes the answer to who is refused. open_paths: that anybody may GET too, because what they answer
        is the same in every installation.
        """
        self._open_paths = open_paths
        self._app = app
        self._access = access
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who asks."""
        is_open = scope["path"] in OPEN or (scope["path"] in self._open_paths and scope["method"] == "GET")
        if not is_open:
            try:
                caller = self._access.caller(authorization_of(scope), certificate_of(scope))
            except Unauthenticated as error:
                response = await self._on_error(Request(scope), error)
                await response(scope, receive, send)
                return
            scope[CALLER] = caller
            arrivals.current().caller = caller.name
        await self._app(scope, receive, send)


def must(request: Request, right: Right) -> None:
    """Raise PermissionDenied unless the caller of a request has this right, or nobody looks."""
    caller: Caller | None = request.scope.get(CALLER)
    if caller is not None:
        caller.must(right)


def may(request: Request, right: Right) -> bool:
    """Whether the caller of a request has this right, or nobody looks."""
    caller: Caller | None = request.scope.get(CALLER)
    return caller is None or right in caller.rights


def authorization_of(scope: Scope) -> str | None:
    """The header, None without one. Raises Unauthenticated for several."""
    given = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
    if len(given) > 1:
        raise Unauthenticated(f"authorization: got {len(given)}, must be one", had_token=True)
    return given[0].decode("latin-1") if given else None


def certificate_of(scope: Scope) -> Names:
    """The names in the client's certificate, as the connection has put them there."""
    names: Names = scope.get("extensions", {}).get("tls", {}).get(CLIENT_NAMES, ())
    return names

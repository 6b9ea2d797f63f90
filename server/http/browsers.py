"""What a browser on this machine may be made to ask by a page of elsewhere: nothing that changes anything, and of a
server that asks nobody who he is, nothing at all by a name that could be that page's.

A name of the Internet may be pointed at 127.0.0.1 once its page is loaded (DNS rebinding); the browser then takes the
server for the page's own, and lets the page read all that it answers. An address cannot be pointed anywhere.
"""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mfalcon.errors import PermissionDenied

HARMLESS: Final = frozenset({"GET", "HEAD"})
ELSEWHERE: Final = frozenset({b"cross-site", b"same-site"})
"""Values of Sec-Fetch-Site, which a page cannot change."""
LOCAL: Final = "localhost"


class Browsers:
    """Middleware that refuses what pages of elsewhere have browsers ask. It holds up no other client: those send no
    Sec-Fetch-Site, and the Host that they were told.
    """

    def __init__(
        self, app: ASGIApp, on_error: Callable[[Request, Exception], Awaitable[Response]], own_host: str | None
    ) -> None:
        """on_error: makes the answer to who is refused. own_host: the host that the server was told to listen on, where
        nobody is asked who he is; None where names do not matter.
        """
        self._app = app
        self._on_error = on_error
        self._own_host = own_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        try:
            self._check(scope)
        except PermissionDenied as error:
            await (await self._on_error(Request(scope), error))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"sec-fetch-site" and value in ELSEWHERE and scope["method"] not in HARMLESS:
                raise PermissionDenied(
                    f"sec-fetch-site: got {value.decode()}, must be same-origin for {scope['method']}: pages of "
                    "elsewhere change nothing here"
                )
            if (
                name == b"host"
                and self._own_host is not None
                and not is_of_here(value.decode("latin-1"), self._own_host)
            ):
                raise PermissionDenied(
                    f"host: got {value.decode('latin-1')[:80]!r}, must be an address, {LOCAL} or a name without dots "
                    "while nobody is asked who they are: a page of elsewhere may have any other name; insecure takes it"
                )


def is_of_here(authority: str, own_host: str) -> bool:
    """Whether no page of elsewhere has this host (with or without a port), whatever DNS says."""
    host = authority[1:].partition("]")[0] if authority.startswith("[") else authority.partition(":")[0]
    host = host.lower().removesuffix(".")
    if "." not in host and ":" not in host:
        return True
    if host == own_host.lower() or host.endswith(f".{LOCAL}"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

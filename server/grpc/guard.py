"""Who calls over gRPC, and whether he may: looked at before anything of the message is read."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import grpc.aio

from mfalcon.errors import Unauthenticated
from server import arrivals
from server.access.access import Access
from server.access.caller import Right
from server.grpc.open_calls import OpenCalls
from server.peer_names import names_over_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Guard = Callable[[Context], None]
"""Raises Unauthenticated or PermissionDenied."""

AUTHORIZATION: Final = "authorization"


def open_to_all(_: Context) -> None:
    """The guard of what anybody may call."""


def guard_of(access: Access, right: Right | None, calls: OpenCalls | None = None) -> Guard:
    """What lets callers with a right pass, every known one if it is None. calls: unless they are over their rate, or
    have too many of these open.
    """
    if not access.is_on:
        return open_to_all

    def check(context: Context) -> None:
        arrival = arrivals.current()
        given = arrival.credentials
        if given is None:
            given = [value for key, value in context.invocation_metadata() or () if key == AUTHORIZATION]
        if len(given) > 1:
            raise Unauthenticated(f"authorization: got {len(given)}, must be one", had_token=True)
        if given:
            caller = access.caller(given[0] if isinstance(given[0], str) else given[0].decode("latin-1"))
        else:
            caller = access.caller(None, names_over_grpc(context.auth_context()))
        arrival.caller = caller.name
        if right is not None:
            caller.must(right)
        if calls is not None:
            access.gate.check(caller.name)
            calls.take(caller.name)
            arrival.when_closed = partial(calls.give_back, caller.name)

    return check

"""What the engine's process must know of the request that a front-end asks for, beside the question itself."""

from collections.abc import Mapping
from typing import Final

from mfalcon.scope import Scope, enter, request_id
from server import arrivals, tracing
from server.request_ids import REQUEST_ID

_CALLER: Final = "caller"


def carried() -> dict[str, str]:
    """Of the request of this task: its name, caller and trace."""
    return {REQUEST_ID: request_id(), _CALLER: arrivals.current().caller} | tracing.joined()


def carry_on(headers: Mapping[str, str]) -> None:
    """Answer, in this task, the request of which another process of this server has `carried` this."""
    enter(Scope(headers.get(REQUEST_ID, "")))
    arrivals.carry_on(headers.get(_CALLER, ""))
    tracing.join(headers)

"""The request that a task answers: what every layer may want to know of it, or has to tell of it, however it ends."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Scope:
    """One request. request_id: its name in logs and traces, "" where nobody gave it one.

    The rest is noted by the engine as it becomes known, for the record of a request that fails too: history_len: events
    acknowledged for the user, -1 while that is not known. log_s, fetch_s: seconds of reading the event log and of
    bringing a state. device_s: seconds since the device was asked, whether it had begun or not. decision: fetch or
    recompute, and why.
    """

    request_id: str = ""
    history_len: int = -1
    log_s: float = 0.0
    fetch_s: float = 0.0
    device_s: float = 0.0
    decision: str = ""


_current: ContextVar[Scope | None] = ContextVar("scope", default=None)


def enter(scope: Scope) -> None:
    """This task, and what it starts from now on, answers this request."""
    _current.set(scope)


def current() -> Scope | None:
    """The request of this task, None in one that answers nobody."""
    return _current.get()


def request_id() -> str:
    """The name of this task's request, "" without one."""
    scope = _current.get()
    return "" if scope is None else scope.request_id

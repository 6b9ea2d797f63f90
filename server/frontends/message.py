"""What all messages between front-ends and the engine's process are made of."""

from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from mfalcon.scope import Scope


class Message(msgspec.Struct, tag=True, array_like=True, gc=False):
    """One message. call: which call of the front-end it is about."""

    call: int


Notes: TypeAlias = tuple[int, float, float, float, str]
"""What the engine noted in the `Scope` of a request: history_len, log_s, fetch_s, device_s, decision."""


def notes_of(scope: Scope | None) -> Notes | None:
    """What is to be told of a scope; None if nothing was noted."""
    if scope is None or (scope.history_len < 0 and not scope.device_s):
        return None
    return scope.history_len, scope.log_s, scope.fetch_s, scope.device_s, scope.decision


def note(scope: Scope | None, notes: Notes | None) -> None:
    """Take over what another process has noted."""
    if scope is not None and notes is not None:
        scope.history_len, scope.log_s, scope.fetch_s, scope.device_s, scope.decision = notes


def flat(array: NDArray[Any], dtype: DTypeLike) -> bytes:
    """The numbers of an array as they lie in memory."""
    return np.asarray(array, dtype=dtype).tobytes()

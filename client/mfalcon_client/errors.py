"""Every error that a call raises.

ClientError
├── InvalidArgument    a value is outside its limit, or cannot be sent at all; the message names field, value and limit
├── NotFound           no model of this name is served
├── VersionConflict    the history is not the expected one; nothing was written by the last attempt
├── Overloaded         refused: there is no room, or the answer would come too late
├── DeadlineExceeded   the time was up before there was an answer
├── Unavailable        no server was reached, or it starts, drains or waits for Redis, or a stream's model was exchanged
├── AccessDenied       the token or certificate is missing, wrong, or not enough
├── ServerFailure      the server failed on this call, or its answer cannot be read
└── Closed             this client was closed before there was an answer

A status that has no class of its own is a plain ClientError.
"""

from collections.abc import Mapping
from typing import Final


class ClientError(Exception):
    """A call without an answer.

    code: the name of the gRPC status, "INVALID_ARGUMENT" say. details: the server's message.
    outcome_unknown: of an append, whether its events may have been written all the same.
    """

    def __init__(self, code: str, details: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.outcome_unknown = outcome_unknown


class InvalidArgument(ClientError):
    """A value is outside its limit, or cannot be sent at all."""


class NotFound(ClientError):
    """No model of this name is served."""


class VersionConflict(ClientError):
    """`expected_len` or `expected_version` is not that of the history. history_len, history_version: what they are;
    None and empty where the server did not say.
    """

    def __init__(
        self,
        code: str,
        details: str,
        *,
        outcome_unknown: bool = False,
        history_len: int | None = None,
        history_version: bytes = b"",
    ) -> None:
        super().__init__(code, details, outcome_unknown=outcome_unknown)
        self.history_len = history_len
        self.history_version = history_version


class Overloaded(ClientError):
    """The call was refused. retry_after_s: after how long the server would have taken it, None where it is unknown."""

    def __init__(
        self, code: str, details: str, *, outcome_unknown: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(code, details, outcome_unknown=outcome_unknown)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(ClientError):
    """The time was up before there was an answer."""


class Unavailable(ClientError):
    """No server was reached, or it does not serve now."""


class AccessDenied(ClientError):
    """The token or certificate is missing, wrong, or not enough."""


class ServerFailure(ClientError):
    """The server failed on this call, or its answer cannot be read."""


class Closed(ClientError):
    """This client was closed before there was an answer."""


ERRORS: Final[Mapping[str, type[ClientError]]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_RANGE": InvalidArgument,
    "NOT_FOUND": NotFound,
    "FAILED_PRECONDITION": VersionConflict,
    "RESOURCE_EXHAUSTED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable,
    "ABORTED": Unavailable,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "INTERNAL": ServerFailure,
    "UNKNOWN": ServerFailure,
    "DATA_LOSS": ServerFailure,
}
"""By the name of a gRPC status. One that has no class of its own is a plain ClientError."""

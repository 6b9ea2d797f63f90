"""Every error that mfalcon raises on purpose.

MFalconError
├── InvalidInput        a caller's value is outside its limit (names field, value and limit)
├── Unauthenticated     nothing proves who the caller is: no token or certificate, or one that is not valid
├── PermissionDenied    the caller is known, and has not the right that the call needs
├── UnknownModel        the request names a model that is not served
├── HistoryMismatch     the user's history is not the one that a call was made for; nothing was done
├── Overloaded          the bounded queue is full, or all memory for KV states is in use
├── Superseded          a stream's first scores were told of a model that another one has replaced since
├── DeadlineExceeded    the caller's deadline passed before the answer was ready
├── NotReady            the server has not begun to serve: it loads its model or waits for Redis
├── ShuttingDown        the server is draining
├── StorageUnavailable  the event log, or Redis with states to delete, cannot be reached or refuses
├── DamagedLog          what lies in the place of a user's event log is no log of his
├── TooFewMembers       fewer members of an ensemble answered within its budget than it needs
├── EngineFailure       a step failed for this request alone
├── CheckpointError     a checkpoint is missing, truncated, tampered with, too new or mismatched
├── DataError           a data set cannot be fetched or read
├── ConfigError         a setting is missing or contradicts another
└── CallFailed          a client's call was refused, or reached no server

Each transport maps this tree to its own codes in one table (`server/grpc/edge.py`, `server/http/api.py`).
"""


class MFalconError(Exception):
    """Base of the tree; its text is fit for the caller to read.

    may_be_done: whether the call may have taken effect all the same.
    """

    may_be_done: bool = False

    def __init__(self, *args: object, may_be_done: bool = False) -> None:
        super().__init__(*args)
        if may_be_done:
            self.may_be_done = True


class InvalidInput(MFalconError):
    """A caller's value is outside its limit.

    The message always reads `field: problem (got value, limit ...)`, so that it can be acted on without the docs.
    """

    def __init__(self, field: str, value: object, limit: str) -> None:
        # A caller's text may be megabytes.
        shown = repr(value[:80] if isinstance(value, str) else value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field}: got {shown}, must be {limit}")
        self.field = field
        self.limit = limit

    @classmethod
    def of(cls, text: str) -> "InvalidInput":
        """The refusal whose message this is: another replica has made it."""
        error = cls.__new__(cls, text)
        error.field, _, problem = text.partition(": ")
        error.limit = problem.rpartition(", must be ")[2]
        return error


class Unauthenticated(MFalconError):
    """Nothing proves who the caller is.

    had_token: whether there was a token at all, for which another may be needed now.
    """

    def __init__(self, text: str, *, had_token: bool = False) -> None:
        super().__init__(text)
        self.had_token = had_token


class PermissionDenied(MFalconError):
    """The caller is known, and has not the right that the call needs."""


class UnknownModel(MFalconError):
    """The request names a model that is not served."""


class HistoryMismatch(MFalconError):
    """`expected_len` or `expected_version` is not that of the acknowledged history; nothing was done.

    history_len: what it is. version_hex: its version, 32 hex digits.
    """

    def __init__(self, text: str, history_len: int, version: bytes) -> None:
        super().__init__(text)
        self.history_len = history_len
        self.version_hex = version.hex()

    @classmethod
    def of_len(cls, expected_len: int, history_len: int, version: bytes) -> "HistoryMismatch":
        """The history has another length."""
        text = f"expected_len: got {expected_len}, the history has {history_len} events; nothing was written"
        return cls(text, history_len, version)

    @classmethod
    def of_version(cls, expected: bytes, history_len: int, version: bytes) -> "HistoryMismatch":
        """The history holds other events."""
        text = (
            f"expected_version: got {expected.hex()}, the history has {history_len} events and version "
            f"{version.hex()}; nothing was written"
        )
        return cls(text, history_len, version)

    @classmethod
    def while_reading(cls, expected: bytes, history_len: int, version: bytes) -> "HistoryMismatch":
        """The history is another one than that whose first pages the caller has."""
        text = (
            f"expected_version: got {expected.hex()}, the history has {history_len} events and version "
            f"{version.hex()}; read it from its first page again"
        )
        return cls(text, history_len, version)


class Overloaded(MFalconError):
    """The request was not accepted: it would be answered too late, the queue is full, or all memory is in use.

    retry_after_s: after how many seconds the same request would have been accepted, if that is known. elsewhere:
    whether another replica may accept it now. of_caller: whether every request of this caller is refused until then.
    """

    def __init__(
        self, text: str, *, retry_after_s: float | None = None, elsewhere: bool = True, of_caller: bool = False
    ) -> None:
        super().__init__(text)
        self.of_caller = of_caller
        self.retry_after_s = retry_after_s
        self.elsewhere = elsewhere


class Superseded(MFalconError):
    """A stream cannot go on: the scores that are left would not be of the same model as those that were told."""


class DeadlineExceeded(MFalconError):
    """The deadline passed before the answer was ready."""


class NotReady(MFalconError):
    """The server has not begun to serve; the message says what it waits for."""


class ShuttingDown(MFalconError):
    """The server is draining and accepts no new work."""


class StorageUnavailable(MFalconError):
    """Redis, or the file of the event log, is needed for this answer and cannot be used."""


class DamagedLog(MFalconError):
    """What lies in the place of a user's event log is not that log; nothing was read or written.

    reason: a word, see `Reason` in mfalcon/history/redis_header.py.
    """

    def __init__(self, reason: str) -> None:
        what = _UNUSABLE_LOGS.get(reason, f"is damaged ({reason})")
        super().__init__(
            f"the event log of this user {what}; nothing was written. Other users are not affected. It is in the place "
            'where it was: docs/operations.md, "Damaged logs", says how to restore it; DeleteUser begins a new one'
        )
        self.reason = reason


_UNUSABLE_LOGS = {
    "format": "was written by a later version of this server",
    "secret": "is signed with a secret that this server does not have",
}


class TooFewMembers(MFalconError):
    """Fewer members of an ensemble answered within its budget than it needs; another replica may have more."""


class EngineFailure(MFalconError):
    """A step failed for this request alone; the cause is in the server's log."""


class CheckpointError(MFalconError):
    """A checkpoint cannot be used; the message names the file and the reason."""


class DataError(MFalconError):
    """A data set cannot be fetched or read; the message names the file and the reason."""


class ConfigError(MFalconError):
    """A setting is missing or contradicts another."""


class CallFailed(MFalconError):
    """The server refused a call or could not be reached; `code` is the gRPC status name."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details

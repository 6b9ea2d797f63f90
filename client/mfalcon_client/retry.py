"""When a call is tried again, as a rule without I/O that both clients share.

Repeated is only what the contract makes safe (ranking.proto). A refusal is RESOURCE_EXHAUSTED with a time to come
again, or whatever bears `x-rank-retry: elsewhere`: nothing was done.

| call | after a refusal | after UNAVAILABLE, CANCELLED by a server that ends |
|---|---|---|
| rank, interests, prefill, get_history, get_model, list_models, delete_user | yes | yes |
| append_events | yes | yes, where servers keep append ids: it is written once at most. Also after INTERNAL, UNKNOWN |
| append_events to older servers | yes | with `expected_len` only |

Nothing is repeated past the call's deadline, nor when many calls fail: then retries would only add load.
"""

import random
import re
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from mfalcon_client.errors import (
    ERRORS,
    ClientError,
    Closed,
    InvalidArgument,
    Overloaded,
    VersionConflict,
)

MAX_TIMEOUT_S = 1e8
"""Three years; a clock of gRPC's overflows at some point past it."""
PUSHBACK = "grpc-retry-pushback-ms"
"""Trailer of a refusal: after how many milliseconds the same call would have been accepted."""
RETRY = ("x-rank-retry", "elsewhere")
"""Trailer of a refusal: nothing was done, and another replica may answer now."""
HISTORY_LEN = "mfalcon-history-len"
HISTORY_VERSION = "mfalcon-history-version"
"""Trailers of a FAILED_PRECONDITION to an append: the length that the history has, and its version in hex digits."""
OUTCOME = "mfalcon-outcome"
"""Trailer of an append or a deletion that failed."""
OUTCOMES = {"nothing-written": False, "unknown": True}
"""What it says: whether it may have happened all the same."""

_OUTCOME_UNKNOWN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"})
"""Statuses after which a write may have happened."""
_NO_SERVER = frozenset({"UNAVAILABLE", "CANCELLED"})
"""CANCELLED is gRPC's own, to a call that is on the wire while its server stops."""
_REFUSED = "RESOURCE_EXHAUSTED"
_VERSION = re.compile(r"[0-9a-f]{32}")
_NUMBER = re.compile(r"-?[0-9]{1,15}")
_SPREAD = 0.2
"""How much longer than told a client waits at most, so that those who were refused together do not return together."""


class Repeat(Enum):
    """What may be repeated."""

    IDEMPOTENT = "idempotent"
    """Done twice is done once."""
    CONDITIONAL = "conditional"
    """A write that happens once at most: it bears a name that the server remembers, or the length that it is for."""
    NEVER = "never"
    """Done twice is wrong: repeated only where it was refused."""


_REPEATED = {
    Repeat.IDEMPOTENT: _NO_SERVER,
    Repeat.CONDITIONAL: _NO_SERVER | {"INTERNAL", "UNKNOWN"},
    Repeat.NEVER: frozenset[str](),
}
"""After which statuses, besides a refusal."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How calls are repeated.

    attempts: of a call, the first one included; 1 for none but that. first_wait_s, most_wait_s: a wait is drawn from 0
    to a bound that doubles from one to the other. budget: failures in a row after half of which nothing is repeated
    any more; every answered call gives back a tenth of one.
    """

    attempts: int = 4
    first_wait_s: float = 0.05
    most_wait_s: float = 1.0
    budget: int = 20

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait_s < 0 or self.most_wait_s < self.first_wait_s or self.budget < 1:
            raise ValueError(f"{self}: attempts and budget must be at least 1, and 0 <= first_wait_s <= most_wait_s")


DEFAULT_RETRY = Retry()
ONCE = Retry(attempts=1)


class Budget:
    """What a client's retries may cost, as in gRPC's retry throttling (gRFC A6). Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._left = self._most
        self._lock = threading.Lock()

    def answered(self) -> None:
        """A call was answered."""
        if self._left < self._most:  # nearly always full: no lock then
            with self._lock:
                self._left = min(self._most, self._left + 0.1)

    def failed(self) -> None:
        """An attempt found no server, or was refused."""
        with self._lock:
            self._left = max(0.0, self._left - 1)

    @property
    def allows(self) -> bool:
        """Whether another attempt may be made."""
        return self._left > self._most / 2


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended. code: the name of a gRPC status. trailers: those with text."""

    code: str
    details: str
    trailers: Sequence[tuple[str, str]] = ()

    @classmethod
    def of(cls, code: str, details: str | None, trailers: Iterable[tuple[str, str | bytes]] | None) -> "Failure":
        """Of what gRPC says."""
        told = [(key, value) for key, value in trailers or () if isinstance(value, str)]
        return cls(code, details or "no details", told)

    @property
    def is_elsewhere(self) -> bool:
        """Whether another replica may answer, and this one did nothing."""
        return RETRY in self.trailers

    @property
    def outcome_unknown(self) -> bool:
        """Whether a write may have happened all the same: as the server says, else as the status lets one guess."""
        told = [OUTCOMES[text] for key, text in self.trailers if key == OUTCOME and text in OUTCOMES]
        return told[0] if told else self.code in _OUTCOME_UNKNOWN and not self.is_elsewhere

    @property
    def settles(self) -> bool:
        """Whether it says of every attempt before that nothing was written: a server that keeps ids has looked for this
        one, and the history has gone past what an attempt on its way could be written to.
        """
        return self.code == "FAILED_PRECONDITION" and (OUTCOME, "nothing-written") in self.trailers

    def number(self, name: str) -> int | None:
        """The trailer of a name, None where there is none or it is no number."""
        return next((int(text) for key, text in self.trailers if key == name and _NUMBER.fullmatch(text)), None)

    def error(self, *, outcome_unknown: bool) -> ClientError:
        """What is raised of it."""
        kind = ERRORS.get(self.code, ClientError)
        if kind is VersionConflict:
            return VersionConflict(
                self.code,
                self.details,
                outcome_unknown=outcome_unknown,
                history_len=self.number(HISTORY_LEN),
                history_version=self._version(),
            )
        if kind is Overloaded:
            told = self.number(PUSHBACK)
            after = None if told is None or told < 0 else told / 1000
            return Overloaded(self.code, self.details, outcome_unknown=outcome_unknown, retry_after_s=after)
        return kind(self.code, self.details, outcome_unknown=outcome_unknown)

    def _version(self) -> bytes:
        digits = next((text for key, text in self.trailers if key == HISTORY_VERSION), "")
        return bytes.fromhex(digits) if _VERSION.fullmatch(digits) else b""


def checked_timeout(timeout_s: float) -> float:
    """A time that a call may take. Raises InvalidArgument for another.

    A float of Python's: the readings of a clock would be rounded to NumPy's float32.
    """
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        told = f"timeout_s: got {timeout_s}, must be more than 0 and at most {MAX_TIMEOUT_S:g}"
        raise InvalidArgument("INVALID_ARGUMENT", told)
    return float(timeout_s)


class Attempts:
    """The attempts of one call, until its deadline. any_replica: each goes to another one, where there are several."""

    def __init__(self, retry: Retry, budget: Budget, repeat: Repeat, timeout_s: float, *, any_replica: bool) -> None:
        timeout_s = checked_timeout(timeout_s)
        self._retry = retry
        self._budget = budget
        self._any_replica = any_replica
        self._repeat = repeat
        self._deadline = time.monotonic() + timeout_s
        self._num_failed = 0
        self._has_begun = False
        self._outcome_unknown = False

    def begin(self) -> float:
        """Begin an attempt, which has so many seconds: what is left, at least 1 ms, so that gRPC says that it is up."""
        self._has_begun = True
        return max(0.001, self._deadline - time.monotonic())

    def answered(self) -> None:
        """The call has its answer."""
        self._budget.answered()

    def failed(self, failure: Failure) -> float:
        """How many seconds to wait before the next attempt. Raises the call's error if there is none."""
        self._num_failed += 1
        unknown = failure.outcome_unknown and self._repeat is not Repeat.IDEMPOTENT
        self._outcome_unknown = not failure.settles and (self._outcome_unknown or unknown)
        wait = self._wait(failure)
        if wait is None:
            raise failure.error(outcome_unknown=self._outcome_unknown)
        return wait

    def closed(self) -> Closed:
        """The error of a call whose client is closed."""
        unknown = self._has_begun and self._repeat is not Repeat.IDEMPOTENT
        return Closed("CANCELLED", "the client was closed", outcome_unknown=unknown)

    def _wait(self, failure: Failure) -> float | None:
        """None where nothing is repeated."""
        if failure.code in _NO_SERVER or failure.code == _REFUSED:
            self._budget.failed()
        if self._num_failed >= self._retry.attempts or not self._budget.allows:
            return None
        wait: float | None
        if failure.is_elsewhere and (self._any_replica or failure.code != _REFUSED):
            wait = self._backoff()
        elif failure.code == _REFUSED:
            wait = self._told(failure)
        else:
            wait = self._backoff() if failure.code in _REPEATED[self._repeat] else None
        return wait if wait is not None and time.monotonic() + wait < self._deadline else None

    def _told(self, failure: Failure) -> float | None:
        """Without a time no wait helps: the message is too large, or the deadline too short for any replica."""
        told = failure.number(PUSHBACK)
        return None if told is None or told < 0 else told / 1000 * random.uniform(1, 1 + _SPREAD)

    def _backoff(self) -> float:
        most = min(self._retry.most_wait_s, self._retry.first_wait_s * 2 ** (self._num_failed - 1))
        return random.uniform(0, most)

"""What a server tells the balancers in front of it: how busy it is, and which refusals another replica may answer."""

import time
from collections.abc import Callable
from typing import Final, TypeAlias

from mfalcon.errors import MFalconError, NotReady, Overloaded, ShuttingDown, TooFewMembers
from mfalcon.load import Load
from server import orca

LOAD: Final = "endpoint-load-metrics"
"""Trailer of gRPC and header of HTTP: an ORCA load report in the text form that Envoy reads."""
LOAD_BINARY: Final = "endpoint-load-metrics-bin"
"""Trailer of gRPC: the same as a message, for gRPC clients that balance by it (weighted_round_robin)."""
RETRY: Final = "x-rank-retry"
ELSEWHERE: Final = "elsewhere"
"""Value of RETRY: nothing was done here, and another replica may answer now. A balancer reads no status of ours from
which that follows: Redis that is away is UNAVAILABLE too, and is so for every replica."""
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]
_STALE_SECONDS: Final = 0.05
_RATE_SECONDS: Final = 1.0


class LoadReport:
    """The part of about the last second in which the device computed, how many answers a second this transport of this
    process gives, and how long a short request would wait. Each answer takes the report once, which counts it; the
    report is made anew after a while at the earliest: many answers share one.
    """

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load
        self._orca = orca.Orca()
        self._text, self._binary, self._made_at = "", b"", 0.0
        self._rps, self._num, self._counted_from = 0.0, 0, time.monotonic()

    def text(self) -> str:
        """As text, for an answer."""
        self._count()
        return self._text

    def trailers(self) -> Trailers:
        """As text and as a message, for an answer."""
        self._count()
        return (LOAD, self._text), (LOAD_BINARY, self._binary)

    def _count(self) -> None:
        now = time.monotonic()
        self._num += 1
        if (passed := now - self._counted_from) >= _RATE_SECONDS:
            self._rps, self._num, self._counted_from = self._num / passed, 0, now
        if not self._text or now - self._made_at > _STALE_SECONDS:
            load = self._load()
            told = load.utilisation, self._rps, {"queue_ms": max(0.0, 1e3 * (load.free_at - now))}
            self._made_at, self._text, self._binary = now, orca.text(*told), self._orca.binary(*told)


def is_for_others(error: MFalconError) -> bool:
    """Whether nothing was done for a refusal, and another replica may answer now."""
    match error:
        case Overloaded():
            return error.elsewhere
        case ShuttingDown():
            return not error.may_be_done
        case _:
            return isinstance(error, NotReady | TooFewMembers)

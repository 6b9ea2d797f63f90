"""What a server tells the balancers in front of it: how busy it is, and which refusals another replica may answer."""

import time
from collections.abc import Callable
from typing import Final

from mfalcon.errors import MFalconError, NotReady, Overloaded, ShuttingDown, TooFewMembers
from mfalcon.load import Load

LOAD: Final = "endpoint-load-metrics"
"""Trailer of gRPC and header of HTTP: an ORCA load report in the text form that Envoy reads."""
RETRY: Final = "x-rank-retry"
ELSEWHERE: Final = "elsewhere"
"""Value of RETRY: nothing was done here, and another replica may answer now. A balancer reads no status of ours from
which that follows: Redis that is away is UNAVAILABLE too, and is so for every replica."""
_STALE_SECONDS: Final = 0.05


class LoadReport:
    """The report as text, made anew after a while at the earliest: many requests share one."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load
        self._text, self._made_at = "", 0.0

    def text(self) -> str:
        """The part of about the last second in which the device computed, and how long a short request would wait."""
        now = time.monotonic()
        if not self._text or now - self._made_at > _STALE_SECONDS:
            load = self._load()
            queue_ms = max(0.0, 1e3 * (load.free_at - now))
            self._made_at = now
            self._text = f"TEXT application_utilization={load.utilisation:.2f},named_metrics.queue_ms={queue_ms:.1f}"
        return self._text


def is_for_others(error: MFalconError) -> bool:
    """Whether nothing was done for a refusal, and another replica may answer now."""
    match error:
        case Overloaded():
            return error.elsewhere
        case ShuttingDown():
            return not error.may_be_done
        case _:
            return isinstance(error, NotReady | TooFewMembers)

"""What callers used, where the server knows who they are. Their names are the operator's, so there are few."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from mfalcon.metrics.catalog import callers


class CallerMetrics:
    """Of one server; the engine's process counts for all front-ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = callers.CALLER_REQUESTS.made(registry)
        self._candidates = callers.CALLER_CANDIDATES.made(registry)
        self._refused = callers.CALLER_REFUSED.made(registry)
        self._given_back = callers.CALLER_GIVEN_BACK.made(registry)
        self._running = callers.CALLER_RUNNING.made(registry)
        self._of: dict[str, tuple[Counter, Counter, Gauge]] = {}
        """To look a child up by its label costs more than to count in it."""

    def begun(self, caller: str, candidates: int) -> None:
        """A request was charged."""
        known = self._of.get(caller)
        if known is None:
            known = self._of[caller] = (
                self._requests.labels(caller),
                self._candidates.labels(caller),
                self._running.labels(caller),
            )
        requests, asked, running = known
        requests.inc()
        if candidates:
            asked.inc(candidates)
        running.inc()

    def ended(self, caller: str) -> None:
        """It has an answer, or nobody waits for one."""
        self._of[caller][2].dec()

    def given_back(self, caller: str, candidates: int) -> None:
        """The engine did not take it."""
        self._given_back.labels(caller).inc(candidates)

    def refused(self, caller: str, limit: str) -> None:
        """A limit of this name was reached."""
        self._refused.labels(caller, limit).inc()

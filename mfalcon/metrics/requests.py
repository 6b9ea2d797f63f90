"""What callers get: requests by how they ended, and how long the answered ones took."""

from prometheus_client import CollectorRegistry, Counter, Histogram

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)


class RequestMetrics:
    """Counts requests as a transport sees them. Label values must come from a bounded set: a model that is served, one
    of our verbs, or "".
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "mfalcon_requests",
            "Requests that arrived, each counted once when it ends, by the code that its caller gets.",
            ["model", "verb", "transport", "code"],
            registry=registry,
        )
        self._seconds = Histogram(
            "mfalcon_request_seconds",
            "Time of answered requests, from the whole message until the answer is serialised.",
            ["model", "verb", "transport"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._mismatches = Counter(
            "mfalcon_affinity_mismatch",
            "Requests whose affinity key is not their user's, or who have none.",
            ["transport", "key"],
            registry=registry,
        )
        # To look a child up by its labels costs more than to count in it.
        self._counters: dict[tuple[str, str, str, str], Counter] = {}
        self._histograms: dict[tuple[str, str, str], Histogram] = {}

    def count(self, model: str, verb: str, transport: str, code: str) -> None:
        """A request has ended."""
        labels = model, verb, transport, code
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._counters[labels] = self._requests.labels(*labels)
        counter.inc()

    def mismatched(self, transport: str, key: str) -> None:
        """A request went by another key than its user's: "wrong", or "none"."""
        self._mismatches.labels(transport, key).inc()

    def took(self, model: str, verb: str, transport: str, seconds: float) -> None:
        """A request was answered well."""
        labels = model, verb, transport
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = self._seconds.labels(*labels)
        histogram.observe(seconds)

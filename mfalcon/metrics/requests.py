"""What callers get: requests by how they ended, and how long the answered ones took."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from mfalcon.metrics.catalog import requests


class RequestMetrics:
    """Counts requests as a transport sees them. Label values must come from a bounded set: a model that is served, one
    of our verbs, or "".
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = requests.REQUESTS.made(registry)
        self._parts = requests.BATCH_PARTS.made(registry)
        self._seconds = requests.REQUEST_SECONDS.made(registry)
        self._first_part_seconds = requests.FIRST_PART_SECONDS.made(registry)
        self._mismatches = requests.AFFINITY_MISMATCH.made(registry)
        self._paced = requests.REFUSALS_PACED.made(registry)
        self._handshakes_paced = requests.HANDSHAKES_PACED.made(registry)
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

    def parts(self, verb: str, transport: str, code: str, num: int) -> None:
        """So many parts of a batch have ended with this code."""
        self._parts.labels(verb, transport, code).inc(num)

    def mismatched(self, transport: str, key: str) -> None:
        """A request went by another key than its user's: "wrong", or "none"."""
        self._mismatches.labels(transport, key).inc()

    def paced(self, transport: str) -> None:
        """An answer that names the caller's fault has to wait for its turn."""
        self._paced.labels(transport).inc()

    def handshake_waited(self, end: str) -> None:
        """A TLS connection over HTTP has waited for its turn: "begun", "late" or "closed"."""
        self._handshakes_paced.labels(end).inc()

    def took(
        self, model: str, verb: str, transport: str, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """A request was answered well. exemplar: names its trace, if it is traced."""
        labels = model, verb, transport
        histogram = self._histograms.get(labels)
        if histogram is None:
            histogram = self._histograms[labels] = self._seconds.labels(*labels)
        histogram.observe(seconds, exemplar)

    def began_to_answer(
        self, model: str, transport: str, seconds: float, exemplar: dict[str, str] | None = None
    ) -> None:
        """The first part of a stream is with the transport. exemplar: as of `took`."""
        self._first_part_seconds.labels(model, transport).observe(seconds, exemplar)

"""What every answer of a model counts, looked up by the model's name once."""

from prometheus_client import Counter

from mfalcon.metrics.states import StateMetrics
from mfalcon.types import CacheInfo, CacheSource


class Total:
    """A counter that follows a total, of one that began at nothing, which is kept elsewhere."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._counted = 0

    def follow(self, total: int) -> None:
        """Count what is new."""
        if total != self._counted:
            self._counter.inc(total - self._counted)
            self._counted = total


class ModelAnswers:
    """What is counted of every model, with states or without."""

    def __init__(self, metrics: StateMetrics, model: str) -> None:
        self._failed = metrics.failed.labels(model)
        self._scored = metrics.scored.labels(model)
        # A series that begins with its first failure has no increase yet that an alert could see.
        for result in ("swapped", "failed"):
            metrics.reloads.labels(model, result)

    def count(self, num_scored: int, num_failed: int) -> None:
        """A request has been answered: so many of its candidates were scored, and so many of those in vain."""
        if num_scored:
            self._scored.inc(num_scored)
        if num_failed:
            self._failed.inc(num_failed)


class ModelStates:
    """The states of one model, from one checkpoint to the next."""

    def __init__(self, metrics: StateMetrics, model: str) -> None:
        self.host_oldest = metrics.host_oldest.labels(model)
        self.host_bytes = metrics.host_bytes.labels(model)
        self.device_bytes = metrics.device_bytes.labels(model)
        self.pool_free_pages = metrics.pool_free_pages.labels(model)
        self.pool_free_bytes = metrics.pool_free_bytes.labels(model)
        self.host_evicted = Total(metrics.host_evicted.labels(model))
        self.device_evicted = Total(metrics.device_evicted.labels(model))
        self.offloaded = Total(metrics.offloaded.labels(model))
        self.not_offloaded = Total(metrics.not_offloaded.labels(model))
        self._lookups = {source: metrics.lookups.labels(model, source.name.lower()) for source in CacheSource}
        self._reused, self._encoded = (metrics.tokens.labels(model, how) for how in ("reused", "encoded"))

    def answered(self, cache: CacheInfo) -> None:
        """A request has been answered from these states."""
        self._lookups[cache.source].inc()
        self._reused.inc(cache.reused_tokens)
        self._encoded.inc(cache.encoded_tokens)

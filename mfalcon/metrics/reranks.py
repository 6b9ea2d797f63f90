"""What became of the reranking that callers asked for."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import requests


class RerankMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reranks = requests.RERANKS.made(registry)

    def count(self, model: str, method: str, outcome: str) -> None:
        """One was answered."""
        self._reranks.labels(model, method, outcome).inc()

"""What became of the reranking that callers asked for."""

from prometheus_client import CollectorRegistry, Counter


class RerankMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reranks = Counter(
            "mfalcon_reranks",
            "Ranks whose top was to be reranked: done, or why it is in the order of the scores (rerank_skipped).",
            ["model", "method", "outcome"],
            registry=registry,
        )

    def count(self, model: str, method: str, outcome: str) -> None:
        """One was answered."""
        self._reranks.labels(model, method, outcome).inc()

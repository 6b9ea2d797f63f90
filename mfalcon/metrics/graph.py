"""What is counted of graph vectors that are refreshed while a model serves."""

from prometheus_client import CollectorRegistry

from mfalcon.errors import CheckpointError, MFalconError
from mfalcon.metrics.catalog import models


class GraphMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.refreshes = models.GRAPH_REFRESHES.made(r)
        self.number = models.GRAPH_NUMBER.made(r)
        self.seconds = models.GRAPH_SECONDS.made(r)

    def applied(self, model: str, number: int, seconds: float) -> None:
        """Vectors are served."""
        self.refreshes.labels(model, "applied").inc()
        self.number.labels(model).set(number)
        self.seconds.labels(model).observe(seconds)

    def refused(self, model: str, error: MFalconError) -> None:
        """Vectors are not."""
        self.refreshes.labels(model, "foreign" if isinstance(error, CheckpointError) else "malformed").inc()

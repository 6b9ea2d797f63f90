"""What is counted of item rows that change while a model serves."""

from prometheus_client import CollectorRegistry

from mfalcon.errors import CheckpointError, MFalconError, Overloaded
from mfalcon.metrics.catalog import models


class ItemMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.deltas = models.ITEM_DELTAS.made(r)
        self.rows = models.ITEM_ROWS.made(r)
        self.number = models.ITEM_DELTA_NUMBER.made(r)
        self.seconds = models.ITEM_DELTA_SECONDS.made(r)

    def applied(self, model: str, number: int, num_rows: int, seconds: float) -> None:
        """A delta is served."""
        self.deltas.labels(model, "applied").inc()
        self.rows.labels(model).inc(num_rows)
        self.number.labels(model).set(number)
        self.seconds.labels(model).observe(seconds)

    def refused(self, model: str, error: MFalconError) -> None:
        """A delta is not."""
        result = "foreign" if isinstance(error, CheckpointError) else "malformed"
        self.deltas.labels(model, "no_room" if isinstance(error, Overloaded) else result).inc()

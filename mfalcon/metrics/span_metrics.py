"""What becomes of the spans of traced requests."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import written


class SpanMetrics:
    """Of one process; counted for nobody if no registry is given."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.spans = written.SPANS.made(registry or CollectorRegistry())

"""What becomes of the lines of the access log."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import written


class LineMetrics:
    """Of one process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.lines = written.ACCESS_LOG_LINES.made(registry)

"""What the item counters count of themselves."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import counters


class CounterMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.events = counters.COUNTED_EVENTS.made(r)
        self.items = counters.COUNTED_ITEMS.made(r)
        self.version = counters.COUNTERS_VERSION.made(r)
        self.left_out = counters.COUNTERS_LEFT_OUT.made(r)
        self.failed = counters.COUNTERS_FAILED.made(r)
        self.recounted = counters.COUNTERS_RECOUNTED.made(r)
        self.waiting = counters.COUNTERS_WAITING.made(r)
        self.swept = counters.COUNTERS_SWEPT.made(r)
        self.copies = counters.COUNTERS_COPIED.made(r)
        self.stale_reads = counters.COUNTERS_STALE_READS.made(r)

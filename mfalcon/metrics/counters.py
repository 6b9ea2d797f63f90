"""What the item counters count of themselves."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics import catalog


class CounterMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.events = catalog.COUNTED_EVENTS.made(r)
        self.items = catalog.COUNTED_ITEMS.made(r)
        self.version = catalog.COUNTERS_VERSION.made(r)
        self.left_out = catalog.COUNTERS_LEFT_OUT.made(r)
        self.failed = catalog.COUNTERS_FAILED.made(r)
        self.recounted = catalog.COUNTERS_RECOUNTED.made(r)
        self.waiting = catalog.COUNTERS_WAITING.made(r)
        self.swept = catalog.COUNTERS_SWEPT.made(r)
        self.copies = catalog.COUNTERS_COPIED.made(r)
        self.stale_reads = catalog.COUNTERS_STALE_READS.made(r)

"""What the item counters count of themselves."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class CounterMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.events = Counter("mfalcon_counted_events", "Acknowledged events that this process counted.", registry=r)
        self.items = Gauge("mfalcon_counted_items", "Items with counters in this process.", registry=r)
        self.version = Gauge("mfalcon_counters_version", "Version of the item counters in this process.", registry=r)
        self.left_out = Counter(
            "mfalcon_counters_left_out", "Items that were not counted because there are too many.", registry=r
        )
        self.stale = Gauge("mfalcon_counters_stale", "1 while item counters may lack events.", registry=r)
        self.snapshots = Counter(
            "mfalcon_counters_snapshots", "Times that all item counters were read from Redis.", registry=r
        )
        self.failures = Counter(
            "mfalcon_counters_failures", "Appends that could not be counted at once, by reason.", ["reason"], registry=r
        )

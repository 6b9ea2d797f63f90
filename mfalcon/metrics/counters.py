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

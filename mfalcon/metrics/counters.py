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
        self.failed = Counter(
            "mfalcon_counters_failed", "Times that events could not be counted, which is done later.", registry=r
        )
        self.recounted = Counter(
            "mfalcon_counters_recounted",
            "Histories that had events between counted ones which were not counted, by how that was mended.",
            ["how"],
            registry=r,
        )
        self.waiting = Gauge("mfalcon_counters_waiting", "Users whose events could not be counted yet.", registry=r)
        self.swept = Counter(
            "mfalcon_counters_swept", "Users who were taken out because their log is gone.", registry=r
        )
        self.copies = Counter("mfalcon_counters_copied", "Copies that were begun of all item counters.", registry=r)
        self.stale_reads = Counter(
            "mfalcon_counters_stale_reads", "Reads of item counters that may have lacked events.", registry=r
        )

"""What is counted of an event log on one machine, in memory or in a file, and of late events in any log."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_CHANGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class LogMetrics:
    """Counters and gauges of the event log of this process (docs/operations.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.users = Gauge("mfalcon_log_users", "Users in the event log of this process.", registry=r)
        self.events = Gauge("mfalcon_log_events", "Events kept in it.", registry=r)
        self.bytes = Gauge("mfalcon_log_bytes", "Bytes of memory, or of the file, that it takes.", registry=r)
        self.budget_bytes = Gauge("mfalcon_log_budget_bytes", "Bytes that it may take, 0 without a bound.", registry=r)
        self.oldest = Gauge(
            "mfalcon_log_oldest_seconds",
            "Time since the user who was not asked for longest was, 0 without users.",
            registry=r,
        )
        self.evicted = Counter(
            "mfalcon_log_evicted", "Users deleted from the event log to keep its bounds.", ["reason"], registry=r
        )
        self.refused = Counter(
            "mfalcon_log_refused", "Appends of new users that were refused, by the bound.", ["bound"], registry=r
        )
        self.late = Counter(
            "mfalcon_late_events", "Acknowledged events that came late, by what became of them.", ["fate"], registry=r
        )
        self.commit_seconds = Histogram(
            "mfalcon_log_commit_seconds", "Time of a commit to the file.", buckets=_SECONDS, registry=r
        )
        self.commit_changes = Histogram(
            "mfalcon_log_commit_changes", "Appends and deletions in a commit.", buckets=_CHANGES, registry=r
        )
        self.failed = Counter(
            "mfalcon_log_failed", "Appends and deletions that the file did not take.", ["reason"], registry=r
        )
        self.journal_bytes = Gauge("mfalcon_log_journal_bytes", "Bytes of the file's journal.", registry=r)
        self.damaged_users = Gauge(
            "mfalcon_log_damaged_users", "Users whose log that check found damaged, at least.", registry=r
        )
        self.verified = Gauge(
            "mfalcon_log_verified_ratio", "Share of the users whose log was checked since the start.", registry=r
        )
        # So that the first of each is an increase, which an alert can see.
        for counter, values in (
            (self.evicted, ("bytes", "users", "idle")),
            (self.refused, ("bytes", "users")),
            (self.failed, ("full", "error")),
            (self.late, ("inserted", "clamped", "discarded")),
        ):
            for value in values:
                counter.labels(value)

"""What is counted of an event log on one machine, in memory or in a file, and of late events in any log."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics import catalog


class LogMetrics:
    """Counters and gauges of the event log of this process (docs/metrics.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.users = catalog.LOG_USERS.made(r)
        self.events = catalog.LOG_EVENTS.made(r)
        self.bytes = catalog.LOG_BYTES.made(r)
        self.budget_bytes = catalog.LOG_BUDGET_BYTES.made(r)
        self.oldest = catalog.LOG_OLDEST.made(r)
        self.evicted = catalog.LOG_EVICTED.made(r)
        self.refused = catalog.LOG_REFUSED.made(r)
        self.appended = catalog.APPENDED_EVENTS.made(r)
        self.late = catalog.LATE_EVENTS.made(r)
        self.commit_seconds = catalog.LOG_COMMIT_SECONDS.made(r)
        self.commit_changes = catalog.LOG_COMMIT_CHANGES.made(r)
        self.failed = catalog.LOG_FAILED.made(r)
        self.journal_bytes = catalog.LOG_JOURNAL_BYTES.made(r)
        self.damaged_users = catalog.LOG_DAMAGED_USERS.made(r)
        self.verified = catalog.LOG_VERIFIED.made(r)

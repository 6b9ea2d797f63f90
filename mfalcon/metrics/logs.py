"""What is counted of an event log on one machine, in memory or in a file, and of late events in any log."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import local_log, log


class LogMetrics:
    """Counters and gauges of the event log of this process (docs/metrics.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        r = registry or CollectorRegistry()
        self.users = local_log.LOG_USERS.made(r)
        self.events = local_log.LOG_EVENTS.made(r)
        self.bytes = local_log.LOG_BYTES.made(r)
        self.budget_bytes = local_log.LOG_BUDGET_BYTES.made(r)
        self.oldest = local_log.LOG_OLDEST.made(r)
        self.evicted = local_log.LOG_EVICTED.made(r)
        self.refused = local_log.LOG_REFUSED.made(r)
        self.appended = log.APPENDED_EVENTS.made(r)
        self.late = log.LATE_EVENTS.made(r)
        self.commit_seconds = local_log.LOG_COMMIT_SECONDS.made(r)
        self.commit_changes = local_log.LOG_COMMIT_CHANGES.made(r)
        self.failed = local_log.LOG_FAILED.made(r)
        self.journal_bytes = local_log.LOG_JOURNAL_BYTES.made(r)
        self.damaged_users = local_log.LOG_DAMAGED_USERS.made(r)
        self.verified = local_log.LOG_VERIFIED.made(r)

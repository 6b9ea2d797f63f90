"""What is captured of requests, and what is not."""

from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import captures

Dropped: TypeAlias = Literal["queue", "disk", "deleted", "no_history", "failed"]


class CaptureMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dropped = captures.CAPTURE_DROPPED.made(registry)
        self.captured = captures.CAPTURED.made(registry)
        self.bytes = captures.CAPTURED_BYTES.made(registry)
        self.disk_bytes = captures.CAPTURE_DISK_BYTES.made(registry)
        self.users = captures.CAPTURE_USERS.made(registry)
        self.deleted = captures.CAPTURE_DELETED_USERS.made(registry)

    def dropped(self, reason: Dropped) -> None:
        """A sampled request will not be captured."""
        self._dropped.labels(reason).inc()

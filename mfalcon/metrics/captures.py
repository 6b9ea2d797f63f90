"""What is captured of requests, and what is not."""

from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry

from mfalcon.metrics import catalog

Dropped: TypeAlias = Literal["queue", "disk", "deleted", "no_history", "failed"]


class CaptureMetrics:
    """Of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._dropped = catalog.CAPTURE_DROPPED.made(registry)
        self.captured = catalog.CAPTURED.made(registry)
        self.bytes = catalog.CAPTURED_BYTES.made(registry)
        self.disk_bytes = catalog.CAPTURE_DISK_BYTES.made(registry)
        self.users = catalog.CAPTURE_USERS.made(registry)
        self.deleted = catalog.CAPTURE_DELETED_USERS.made(registry)

    def dropped(self, reason: Dropped) -> None:
        """A sampled request will not be captured."""
        self._dropped.labels(reason).inc()

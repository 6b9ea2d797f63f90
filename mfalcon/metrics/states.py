"""What the state tiers count. One object per server, with a registry of its own: no global counters."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics import catalog
from mfalcon.types import ModelInfo


class StateMetrics:
    """Counters, gauges and histograms of the event log, the tiers and Redis (docs/metrics.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.lookups = catalog.STATE_LOOKUPS.made(r)
        self.tokens = catalog.STATE_TOKENS.made(r)
        self.failed = catalog.FAILED_CANDIDATES.made(r)
        self.decisions = catalog.STATE_DECISIONS.made(r)
        self.scored = catalog.SCORED_CANDIDATES.made(r)
        self.model_info = catalog.MODEL_INFO.made(r)
        self.backend = catalog.BACKEND.made(r)
        self.pool_pages = catalog.POOL_PAGES.made(r)
        self.pool_free_pages = catalog.POOL_FREE_PAGES.made(r)
        self.pool_bytes = catalog.POOL_BYTES.made(r)
        self.pool_free_bytes = catalog.POOL_FREE_BYTES.made(r)
        self.no_room = catalog.FETCHES_WITHOUT_ROOM.made(r)
        self.host_bytes = catalog.HOST_BYTES.made(r)
        self.host_oldest = catalog.HOST_OLDEST.made(r)
        self.kv_usage = catalog.KV_USAGE.made(r)
        self.kv_usage.set_function(self._used_share)
        self.host_evicted = catalog.HOST_EVICTED.made(r)
        self.device_bytes = catalog.DEVICE_BYTES.made(r)
        self.device_evicted = catalog.DEVICE_EVICTED.made(r)
        self.offloaded = catalog.OFFLOADED.made(r)
        self.not_offloaded = catalog.NOT_OFFLOADED.made(r)
        self.rejected = catalog.CHUNKS_REJECTED.made(r)
        self.chunks = catalog.CHUNKS.made(r)
        self.chunk_bytes = catalog.CHUNK_BYTES.made(r)
        self.dropped = catalog.WRITE_BEHIND_DROPPED.made(r)
        self.waiting = catalog.WRITE_BEHIND_WAITING.made(r)
        self.redis_seconds = catalog.REDIS_SECONDS.made(r)
        self.redis_errors = catalog.REDIS_ERRORS.made(r)
        self.breaker_open = catalog.REDIS_BREAKER_OPEN.made(r)
        self.breaker_opened = catalog.REDIS_BREAKER_OPENED.made(r)
        self.log_reads = catalog.LOG_READS.made(r)
        self.log_conflicts = catalog.LOG_CONFLICTS.made(r)
        self.log_trims = catalog.LOG_TRIMS.made(r)
        self.log_damaged = catalog.LOG_DAMAGED.made(r)
        self.log_swept = catalog.LOG_SWEPT.made(r)
        self.log_expired = catalog.LOG_EXPIRED.made(r)
        self.log_rollbacks = catalog.LOG_ROLLBACKS.made(r)
        self.log_quarantined = catalog.LOG_QUARANTINED.made(r)
        self.log_not_durable = catalog.LOG_NOT_DURABLE.made(r)
        self.reloads = catalog.RELOADS.made(r)
        self.deleted = catalog.DELETED_USERS.made(r)

    def serves(self, info: ModelInfo, instead_of: ModelInfo | None = None) -> None:
        """A version of a model is served from now on."""
        if instead_of is not None:
            self.model_info.remove(instead_of.name, instead_of.architecture, instead_of.version)
        self.model_info.labels(info.name, info.architecture, info.version).set(1)

    def _used_share(self) -> float:
        total, free = (
            sum(sample.value for family in gauge.collect() for sample in family.samples)
            for gauge in (self.pool_bytes, self.pool_free_bytes)
        )
        return 1 - free / total if total else 0.0

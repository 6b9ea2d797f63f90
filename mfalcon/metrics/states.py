"""What the state tiers count. One object per server, with a registry of its own: no global counters."""

from prometheus_client import CollectorRegistry

from mfalcon.metrics.catalog import log, models, redis, requests, shared_states, states
from mfalcon.types import ModelInfo


class StateMetrics:
    """Counters, gauges and histograms of the event log, the tiers and Redis (docs/metrics.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.lookups = states.STATE_LOOKUPS.made(r)
        self.tokens = states.STATE_TOKENS.made(r)
        self.failed = requests.FAILED_CANDIDATES.made(r)
        self.decisions = shared_states.STATE_DECISIONS.made(r)
        self.scored = requests.SCORED_CANDIDATES.made(r)
        self.model_info = models.MODEL_INFO.made(r)
        self.backend = models.BACKEND.made(r)
        self.pool_pages = states.POOL_PAGES.made(r)
        self.pool_free_pages = states.POOL_FREE_PAGES.made(r)
        self.pool_bytes = states.POOL_BYTES.made(r)
        self.pool_free_bytes = states.POOL_FREE_BYTES.made(r)
        self.no_room = shared_states.FETCHES_WITHOUT_ROOM.made(r)
        self.host_bytes = states.HOST_BYTES.made(r)
        self.host_oldest = states.HOST_OLDEST.made(r)
        self.kv_usage = states.KV_USAGE.made(r)
        self.kv_usage.set_function(self._used_share)
        self.host_evicted = states.HOST_EVICTED.made(r)
        self.device_bytes = states.DEVICE_BYTES.made(r)
        self.device_evicted = states.DEVICE_EVICTED.made(r)
        self.offloaded = states.OFFLOADED.made(r)
        self.not_offloaded = states.NOT_OFFLOADED.made(r)
        self.rejected = shared_states.CHUNKS_REJECTED.made(r)
        self.chunks = shared_states.CHUNKS.made(r)
        self.chunk_bytes = shared_states.CHUNK_BYTES.made(r)
        self.dropped = shared_states.WRITE_BEHIND_DROPPED.made(r)
        self.waiting = shared_states.WRITE_BEHIND_WAITING.made(r)
        self.redis_seconds = redis.REDIS_SECONDS.made(r)
        self.redis_errors = redis.REDIS_ERRORS.made(r)
        self.breaker_open = redis.REDIS_BREAKER_OPEN.made(r)
        self.breaker_opened = redis.REDIS_BREAKER_OPENED.made(r)
        self.log_reads = log.LOG_READS.made(r)
        self.log_conflicts = log.LOG_CONFLICTS.made(r)
        self.log_trims = log.LOG_TRIMS.made(r)
        self.log_damaged = log.LOG_DAMAGED.made(r)
        self.log_swept = log.LOG_SWEPT.made(r)
        self.log_expired = log.LOG_EXPIRED.made(r)
        self.log_rollbacks = log.LOG_ROLLBACKS.made(r)
        self.log_quarantined = log.LOG_QUARANTINED.made(r)
        self.log_not_durable = log.LOG_NOT_DURABLE.made(r)
        self.reloads = models.RELOADS.made(r)
        self.deleted = log.DELETED_USERS.made(r)

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

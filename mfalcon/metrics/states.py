"""What the state tiers count. One object per server, with a registry of its own: no global counters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class StateMetrics:
    """Counters, gauges and histograms of the event log, the tiers and Redis (docs/operations.md explains each)."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.lookups = Counter(
            "mfalcon_state_lookups",
            "Requests by the tier in which their KV state was found.",
            ["model", "source"],
            registry=r,
        )
        self.tokens = Counter(
            "mfalcon_state_tokens", "Prefix tokens taken from a KV state or encoded.", ["model", "how"], registry=r
        )
        self.failed = Counter(
            "mfalcon_failed_candidates",
            "Candidates for which the model gives no finite number, in requests that are answered.",
            ["model"],
            registry=r,
        )
        self.decisions = Counter(
            "mfalcon_state_decisions", "Fetch or recompute, and why.", ["choice", "reason"], registry=r
        )
        self.backend = Gauge(
            "mfalcon_backend", "1 for the backend that computes.", ["model", "device", "dtype", "backend"], registry=r
        )
        self.pool_pages = Gauge("mfalcon_pool_pages", "Pages for KV states in this process.", ["model"], registry=r)
        self.pool_free_pages = Gauge(
            "mfalcon_pool_free_pages", "Pages of which nobody holds any part.", ["model"], registry=r
        )
        self.pool_bytes = Gauge("mfalcon_pool_bytes", "Bytes of all pages for KV states.", ["model"], registry=r)
        self.pool_free_bytes = Gauge(
            "mfalcon_pool_free_bytes", "Bytes of pages and parts of pages that nobody holds.", ["model"], registry=r
        )
        self.no_room = Counter(
            "mfalcon_fetches_without_room", "KV states from Redis for which no pages were free.", registry=r
        )
        self.host_bytes = Gauge("mfalcon_host_bytes", "Bytes of KV states in the host tier.", ["model"], registry=r)
        self.host_evicted = Counter(
            "mfalcon_host_evicted", "KV states evicted from the host tier.", ["model"], registry=r
        )
        self.device_bytes = Gauge("mfalcon_device_bytes", "Bytes of KV states on the GPU.", ["model"], registry=r)
        self.device_evicted = Counter(
            "mfalcon_device_evicted", "KV states evicted from the GPU.", ["model"], registry=r
        )
        self.offloaded = Counter(
            "mfalcon_offloaded", "KV states copied from the GPU to host memory.", ["model"], registry=r
        )
        self.not_offloaded = Counter(
            "mfalcon_not_offloaded",
            "KV states that were not copied from the GPU: no room, or no time.",
            ["model"],
            registry=r,
        )
        self.rejected = Counter(
            "mfalcon_chunks_rejected", "Chunks read from Redis that were not used, by reason.", ["reason"], registry=r
        )
        self.chunks = Counter("mfalcon_chunks", "Chunks read from or written to Redis.", ["direction"], registry=r)
        self.chunk_bytes = Counter(
            "mfalcon_chunk_bytes", "Bytes of chunks read from or written to Redis.", ["direction"], registry=r
        )
        self.dropped = Counter(
            "mfalcon_write_behind_dropped",
            "KV states that were not written to Redis, by reason.",
            ["reason"],
            registry=r,
        )
        self.waiting = Gauge("mfalcon_write_behind_waiting", "KV states waiting to be written to Redis.", registry=r)
        self.redis_seconds = Histogram(
            "mfalcon_redis_seconds", "Time of calls to Redis.", ["op"], buckets=_SECONDS, registry=r
        )
        self.redis_errors = Counter(
            "mfalcon_redis_errors", "Calls that Redis did not answer well.", ["op", "reason"], registry=r
        )
        self.breaker_open = Gauge(
            "mfalcon_redis_breaker_open", "1 while a Redis node is not tried.", ["node"], registry=r
        )
        self.breaker_opened = Counter("mfalcon_redis_breaker_opened", "Times that a breaker opened.", registry=r)
        self.log_reads = Counter(
            "mfalcon_log_reads",
            "Reads of the event log in Redis: unchanged, delta, full or stale.",
            ["kind"],
            registry=r,
        )
        self.log_conflicts = Counter(
            "mfalcon_log_conflicts", "Appends that met another writer and were tried again.", registry=r
        )
        self.log_trims = Counter("mfalcon_log_trims", "Times that a user's log was cut.", registry=r)
        self.log_damaged = Counter(
            "mfalcon_log_damaged",
            "Reads and appends that found no log of the user in its place, by reason.",
            ["reason"],
            registry=r,
        )
        self.log_swept = Counter("mfalcon_log_swept", "Logs in Redis whose age was looked at.", registry=r)
        self.log_expired = Counter("mfalcon_log_expired", "Logs in Redis that were deleted for their age.", registry=r)
        self.log_rollbacks = Counter(
            "mfalcon_log_rollbacks", "Logs that lost what this process knew of them.", registry=r
        )
        self.log_quarantined = Counter(
            "mfalcon_log_quarantined", "Damaged logs that were moved away, by reason.", ["reason"], registry=r
        )
        self.log_not_durable = Counter(
            "mfalcon_log_not_durable", "Appends that were written, but not as durably as asked in time.", registry=r
        )
        self.reloads = Counter(
            "mfalcon_reloads", "Exchanges of a model's checkpoint: swapped, or failed.", ["model", "result"], registry=r
        )
        self.deleted = Counter(
            "mfalcon_deleted_users", "Users erased from this process's memory, by who asked.", ["by"], registry=r
        )

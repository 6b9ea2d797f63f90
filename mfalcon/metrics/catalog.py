"""Every metric that /metrics shows, defined once. The classes beside this file count in what is made of it, and
`python -m mfalcon.metrics.publish` writes docs/metrics.md, the dashboard and the alert rules from it.
"""

from typing import Final

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, HistogramDefinition, Metric, Section

_REQUESTS = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
)
_FAST = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

REQUESTS_SECTION = Section(title="Requests")
CALLERS_SECTION = Section(title="Callers")
DEVICE_SECTION = Section(title="Device and event loops")
MODELS_SECTION = Section(title="Models and reloads")
STATES_SECTION = Section(title="KV states")
GPU_SECTION = Section(title="KV states on a GPU")
SHARED_SECTION = Section(title="KV states in Redis")
REDIS_SECTION = Section(title="Redis")
LOG_SECTION = Section(title="Event log")
LOCAL_LOG_SECTION = Section(title="Event log on one machine")
CERTIFICATES_SECTION = Section(title="Certificates")
COUNTERS_SECTION = Section(title="Counters of items")
CAPTURES_SECTION = Section(title="Captured requests")
WRITTEN_SECTION = Section(title="Access log and traces")
PROCESS_SECTION = Section(title="Processes")

# --- What callers get.

REQUESTS = CounterDefinition(
    name="mfalcon_requests",
    help="Requests that arrived, each counted once when it ends, by the code that its caller gets.",
    section=REQUESTS_SECTION,
    labels=("model", "verb", "transport", "code"),
    values={"transport": ("grpc", "http")},
    frontends=True,
    tells="`code` is the name of the status over gRPC, the number over HTTP. `CANCELLED`, `499`: the caller left. "
    "`RESOURCE_EXHAUSTED` without a model is what gRPC refused itself: a message that is too large, or that its caller "
    'took back before it was here, a call too many. `model` is a served model, "" where none was found or none is '
    'asked (AppendEvents, GetHistory, DeleteUser, ListModels); `verb` is "" for a method or path that does not exist, '
    "and for what is no HTTP request. Probes and scrapes do not count.",
)
REQUEST_SECONDS = HistogramDefinition(
    name="mfalcon_request_seconds",
    help="Time of answered requests, from the whole message until the answer is serialised.",
    section=REQUESTS_SECTION,
    labels=("model", "verb", "transport"),
    values={"transport": ("grpc", "http")},
    buckets=_REQUESTS,
    frontends=True,
    tells="It knows only those that were answered well: refusals would hide what the others wait.",
)
FIRST_PART_SECONDS = HistogramDefinition(
    name="mfalcon_first_part_seconds",
    help="Time of streams of scores, from the whole message until the first part is with the transport.",
    section=REQUESTS_SECTION,
    labels=("model", "transport"),
    values={"transport": ("grpc", "http")},
    buckets=_REQUESTS,
    frontends=True,
    tells="It knows every stream that had a first part, however it ended; `mfalcon_request_seconds` has the whole of "
    "those that ended well. The nearer the two, the less is won by asking for parts.",
)
STAGE_SECONDS = HistogramDefinition(
    name="mfalcon_stage_seconds",
    help="Time of answered ranks by stage.",
    section=REQUESTS_SECTION,
    labels=("model", "stage"),
    values={
        "stage": (
            *("admission", "log", "fetch", "queue", "features", "encode", "score"),
            *("merge", "rerank", "reply"),
        )
    },
    buckets=(
        *(0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        *(1.0, 2.0, 5.0, 10.0),
    ),
    frontends=True,
    tells="It says where the time goes. `admission`: message to engine, `log` and `fetch`: Redis, `queue`: the device "
    "had others, `features`: dense features and counters, `encode` and `score`: computing, `merge`: the mean of an "
    "ensemble's members, who count the stages before it under their own names, `rerank`: reordering the top where that "
    "was asked, `reply`: serialising.",
)
SCORED_CANDIDATES = CounterDefinition(
    name="mfalcon_scored_candidates",
    help="Candidates that were scored in answered ranks.",
    section=REQUESTS_SECTION,
    labels=("model",),
    tells="It is the work that callers ask for, whatever the size of their requests.",
)
PARTIAL = CounterDefinition(
    name="mfalcon_partial",
    help="Ranks that were answered with the scores of their first candidates alone, as they allow.",
    section=REQUESTS_SECTION,
    labels=("model",),
    tells="Many mean that the deadlines of those who allow it are short of the load.",
)
FAILED_CANDIDATES = CounterDefinition(
    name="mfalcon_failed_candidates",
    help="Candidates for which the model gives no finite number, in requests that are answered.",
    section=REQUESTS_SECTION,
    labels=("model",),
    tells="`failed` of the answer names them, the log has their ids. Go back to the last checkpoint.",
)
UNANSWERED = CounterDefinition(
    name="mfalcon_unanswered",
    help="Ranks and prefills that the engine did not answer: refused by prediction or for want of room, late, or "
    "abandoned by their caller.",
    section=REQUESTS_SECTION,
    labels=("model", "reason"),
    values={"reason": ("refused", "late", "abandoned")},
    tells="`refused`: they would have come too late, or there was no room; `late`: their deadline passed; `abandoned`: "
    "their caller left.",
)
AFFINITY_MISMATCH = CounterDefinition(
    name="mfalcon_affinity_mismatch",
    help="Requests whose affinity key is not their user's, or who have none.",
    section=REQUESTS_SECTION,
    labels=("transport", "key"),
    values={"transport": ("grpc", "http"), "key": ("wrong", "none")},
    frontends=True,
    tells="They are answered, but a balancer that hashes `x-rank-key` sends them to any replica, where the state is "
    "not. Nothing to mind without a balancer.",
)
REFUSALS_PACED = CounterDefinition(
    name="mfalcon_refusals_paced",
    help="Answers that name a fault of the caller and had to wait, since there were more than max_refusals_per_s.",
    section=REQUESTS_SECTION,
    labels=("transport",),
    values={"transport": ("grpc", "http")},
    frontends=True,
    tells="Somebody sends wrong requests by the thousand: the codes of `mfalcon_requests` say what is wrong with them, "
    "the access log who it is.",
)
RERANKS = CounterDefinition(
    name="mfalcon_reranks",
    help="Ranks whose top was to be reranked: done, or why it is in the order of the scores (rerank_skipped).",
    section=REQUESTS_SECTION,
    labels=("model", "method", "outcome"),
    tells="[rerank.md](rerank.md) says more. `done`; or `late`: there was no time, `failed`: the log says why; of a "
    "language model also `off`, `busy`, `unavailable`, `refused` and `no_permutation`.",
)
MERGES = CounterDefinition(
    name="mfalcon_merges",
    help="Ranks of ensembles: of all members (whole), of some (partial), or of too few to be answered.",
    section=REQUESTS_SECTION,
    labels=("ensemble", "outcome"),
    values={"outcome": ("whole", "partial", "too_few")},
    needs="[[ensembles]]",
    tells="[merging.md](merging.md) says more. `partial`: a member is missing, or has no score for some candidate; "
    "`too_few`: no answer.",
)
MEMBERS = CounterDefinition(
    name="mfalcon_members",
    help="Members of ensembles in merges: arrived, or why they did not.",
    section=REQUESTS_SECTION,
    labels=("ensemble", "member", "outcome"),
    needs="[[ensembles]]",
    tells="`arrived`; `late`: not within the budget; `overloaded`: refused; `away`: its replica does not answer; "
    "`disagrees`: what it serves cannot be merged, the log says why; `outdated`: it read another history than the "
    "others; `given_up`: the others were too few; `failed`.",
)

# --- Who they are, where the server knows.

CALLER_REQUESTS = CounterDefinition(
    name="mfalcon_caller_requests",
    help="Requests of a caller that the engine was asked.",
    section=CALLERS_SECTION,
    labels=("caller",),
    needs="--tokens-file",
    tells="Callers have the names that the operator gave them.",
)
CALLER_CANDIDATES = CounterDefinition(
    name="mfalcon_caller_candidates",
    help="Candidates of a caller that the engine was asked.",
    section=CALLERS_SECTION,
    labels=("caller",),
    needs="--tokens-file",
)
CALLER_REFUSED = CounterDefinition(
    name="mfalcon_caller_refused",
    help="Requests of a caller that were beyond one of its limits.",
    section=CALLERS_SECTION,
    labels=("caller", "limit"),
    needs="--tokens-file",
    tells="The caller asks for more than was agreed: give it more, or tell it.",
)
CALLER_GIVEN_BACK = CounterDefinition(
    name="mfalcon_caller_given_back",
    help="Candidates that were charged to a caller and given back: the engine did not take the request.",
    section=CALLERS_SECTION,
    labels=("caller",),
    needs="--tokens-file",
)
CALLER_RUNNING = GaugeDefinition(
    name="mfalcon_caller_running",
    help="Requests of a caller that have no answer yet.",
    section=CALLERS_SECTION,
    labels=("caller",),
    needs="--tokens-file",
)

# --- The device and the event loops.

QUEUE_JOBS = GaugeDefinition(
    name="mfalcon_queue_jobs",
    help="Jobs that wait for the device, now.",
    section=DEVICE_SECTION,
)
RUNNING_JOBS = GaugeDefinition(
    name="mfalcon_running_jobs",
    help="Jobs of the step that the device does, now.",
    section=DEVICE_SECTION,
    tells="One that was interrupted after a slice waits again, and counts as that.",
)
QUEUE_SECONDS = GaugeDefinition(
    name="mfalcon_queue_seconds",
    help="Time that the jobs which wait are predicted to take, now.",
    section=DEVICE_SECTION,
    tells="Autoscale by it ([scaling.md](scaling.md)).",
)
DEVICE_HEARTBEAT = GaugeDefinition(
    name="mfalcon_device_heartbeat_seconds",
    help="Time since the step of requests in progress began, 0 while there is none.",
    section=DEVICE_SECTION,
    tells="A step that does not end is a device that hangs: `--device-stall-s` ends the server.",
)
BATCH_JOBS = HistogramDefinition(
    name="mfalcon_batch_jobs",
    help="Jobs that one step did.",
    section=DEVICE_SECTION,
    labels=("model",),
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
SLICE_SECONDS = HistogramDefinition(
    name="mfalcon_slice_seconds",
    help="Time of a step of requests.",
    section=DEVICE_SECTION,
    labels=("model",),
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    tells="Its sum is the time in which the device computed.",
)
COST_RATIO = HistogramDefinition(
    name="mfalcon_cost_ratio",
    help="Time of a step over the time that was predicted of it.",
    section=DEVICE_SECTION,
    labels=("model",),
    buckets=(0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0),
    tells="Admission is as good as this is near 1; beside other work on the same cores it rises.",
)
LOOP_LAG = HistogramDefinition(
    name="mfalcon_loop_lag_seconds",
    help="How late the event loop runs what is due, asked every 0.05 s.",
    section=DEVICE_SECTION,
    labels=("frontend",),
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
    frontends=True,
    tells="While it is held up it serves nobody. `frontend` is a front-end's number, \"\" for the engine's process.",
)

# --- What is served.

BACKEND = GaugeDefinition(
    name="mfalcon_backend",
    help="1 for the backend that computes.",
    section=MODELS_SECTION,
    labels=("model", "device", "dtype", "backend"),
    tells="The server says on standard error, before it is ready, why it is nothing faster.",
)
MODEL_INFO = GaugeDefinition(
    name="mfalcon_model_info",
    help="1 for the version of a model that is served.",
    section=MODELS_SECTION,
    labels=("model", "architecture", "version"),
    tells="Several versions of one model at once are a rollout that goes on, or one that stopped halfway.",
)
BUILD_INFO = GaugeDefinition(
    name="mfalcon_build_info",
    help="1 for the version of mfalcon that runs, and of torch.",
    section=MODELS_SECTION,
    labels=("version", "torch"),
)
CONFIG_INFO = GaugeDefinition(
    name="mfalcon_config_info",
    help="1 for a hash of all settings, which tells replicas apart that are set up otherwise.",
    section=MODELS_SECTION,
    labels=("hash",),
    tells="Secrets are not a part of it.",
)
RELOADS = CounterDefinition(
    name="mfalcon_reloads",
    help="Exchanges of a model's checkpoint: swapped, or failed.",
    section=MODELS_SECTION,
    labels=("model", "result"),
    values={"result": ("swapped", "failed")},
    tells="After `failed` the old one serves on; the log has the reason.",
)

ITEM_DELTAS = CounterDefinition(
    name="mfalcon_item_deltas",
    help="Deltas of item rows: applied, or why not.",
    section=MODELS_SECTION,
    labels=("model", "result"),
    values={"result": ("applied", "malformed", "foreign", "no_room")},
    tells="`malformed`: rows that the model cannot have, or a torn file. `foreign`: of another checkpoint, or out of "
    "turn. After any of these the last table serves on; the log has the reason.",
)
ITEM_ROWS = CounterDefinition(
    name="mfalcon_item_rows",
    help="Item rows that deltas have changed or added.",
    section=MODELS_SECTION,
    labels=("model",),
)
ITEM_DELTA_NUMBER = GaugeDefinition(
    name="mfalcon_item_delta_number",
    help="Number of the last delta of item rows.",
    section=MODELS_SECTION,
    labels=("model",),
    tells="Where replicas differ for long, one of them does not follow.",
)
ITEM_DELTA_SECONDS = HistogramDefinition(
    name="mfalcon_item_delta_seconds",
    help="Time from the arrival of a whole delta of item rows until it is served.",
    section=MODELS_SECTION,
    labels=("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

GRAPH_REFRESHES = CounterDefinition(
    name="mfalcon_graph_refreshes",
    help="Files of graph vectors: applied, or why not.",
    section=MODELS_SECTION,
    labels=("model", "result"),
    values={"result": ("applied", "malformed", "foreign")},
    tells="`malformed`: no vectors that the model can have, or a torn file. `foreign`: of another checkpoint, or no "
    "newer than those that are served. After any of these the last vectors serve on; the log has the reason.",
)
GRAPH_NUMBER = GaugeDefinition(
    name="mfalcon_graph_number",
    help="Number of the last refresh of graph vectors.",
    section=MODELS_SECTION,
    labels=("model",),
    tells="Where replicas differ for long, one of them does not follow.",
)
GRAPH_SECONDS = HistogramDefinition(
    name="mfalcon_graph_refresh_seconds",
    help="Time from reading a file of graph vectors until they are served.",
    section=MODELS_SECTION,
    labels=("model",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)

# --- KV states, wherever they are.

STATE_LOOKUPS = CounterDefinition(
    name="mfalcon_state_lookups",
    help="Requests by the tier in which their KV state was found.",
    section=STATES_SECTION,
    labels=("model", "source"),
    values={"source": ("none", "gpu", "host", "redis")},
    tells="It gives the hit rate of each tier; `none`: the history was encoded from its beginning.",
)
STATE_TOKENS = CounterDefinition(
    name="mfalcon_state_tokens",
    help="Prefix tokens taken from a KV state or encoded.",
    section=STATES_SECTION,
    labels=("model", "how"),
    values={"how": ("reused", "encoded")},
    tells="It shows what caching saves.",
)
POOL_PAGES = GaugeDefinition(
    name="mfalcon_pool_pages",
    help="Pages for KV states in this process.",
    section=STATES_SECTION,
    labels=("model",),
    tells="Their number follows from `--kv-budget-mb`, `--write-behind-mb` with Redis, three full windows and four "
    "pages a thread; on a GPU they are those there.",
)
POOL_FREE_PAGES = GaugeDefinition(
    name="mfalcon_pool_free_pages",
    help="Pages of which nobody holds any part.",
    section=STATES_SECTION,
    labels=("model",),
    tells="It is that of the last answered request. That none are free is usual: cached states are dropped to make "
    "room before a request is refused.",
)
POOL_BYTES = GaugeDefinition(
    name="mfalcon_pool_bytes",
    help="Bytes of all pages for KV states.",
    section=STATES_SECTION,
    labels=("model",),
)
POOL_FREE_BYTES = GaugeDefinition(
    name="mfalcon_pool_free_bytes",
    help="Bytes of pages and parts of pages that nobody holds.",
    section=STATES_SECTION,
    labels=("model",),
    tells="Small pages that are free in a page that others hold in part count here alone.",
)
HOST_BYTES = GaugeDefinition(
    name="mfalcon_host_bytes",
    help="Bytes of KV states in the host tier.",
    section=STATES_SECTION,
    labels=("model",),
)
HOST_OLDEST = GaugeDefinition(
    name="mfalcon_host_oldest_seconds",
    help="Time since the state of the host tier that was not used for longest was, 0 without states.",
    section=STATES_SECTION,
    labels=("model",),
    tells="It is that of the last answered request. Once the tier is full, this is how long a user may stay away and "
    "still find a state; below the usual time between visits `--kv-budget-mb` is short.",
)
KV_USAGE = GaugeDefinition(
    name="mfalcon_kv_usage_ratio",
    help="Share of the memory for KV states of all models that is in use, by requests or by cached states.",
    section=STATES_SECTION,
    tells="Near 1 is usual: cached states stay until a request needs their memory.",
)
HOST_EVICTED = CounterDefinition(
    name="mfalcon_host_evicted",
    help="KV states evicted from the host tier.",
    section=STATES_SECTION,
    labels=("model",),
    tells="Evictions that grow with traffic mean that `--kv-budget-mb` is short.",
)
DEVICE_BYTES = GaugeDefinition(
    name="mfalcon_device_bytes",
    help="Bytes of KV states on the GPU.",
    section=GPU_SECTION,
    labels=("model",),
    needs="--device cuda",
)
DEVICE_EVICTED = CounterDefinition(
    name="mfalcon_device_evicted",
    help="KV states evicted from the GPU.",
    section=GPU_SECTION,
    labels=("model",),
    needs="--device cuda",
    tells="Evictions that grow with traffic mean that `--device-budget-mb` is short.",
)
OFFLOADED = CounterDefinition(
    name="mfalcon_offloaded",
    help="KV states copied from the GPU to host memory.",
    section=GPU_SECTION,
    labels=("model",),
    needs="--device cuda",
)
NOT_OFFLOADED = CounterDefinition(
    name="mfalcon_not_offloaded",
    help="KV states that were not copied from the GPU: no room, or no time.",
    section=GPU_SECTION,
    labels=("model",),
    needs="--device cuda",
    tells="Give the host more (`--kv-budget-mb`).",
)

# --- KV states in Redis.

STATE_DECISIONS = CounterDefinition(
    name="mfalcon_state_decisions",
    help="Fetch or recompute, and why.",
    section=SHARED_SECTION,
    labels=("choice", "reason"),
    needs="--redis-url",
    tells="It is decided where the host had too little. Reasons: `cheaper`, `meets deadline`, `only way`, `takes too "
    "long`, `redis unavailable` (the breaker is open).",
)
FETCHES_WITHOUT_ROOM = CounterDefinition(
    name="mfalcon_fetches_without_room",
    help="KV states from Redis for which no pages were free.",
    section=SHARED_SECTION,
    needs="--redis-url",
    tells="They would have taken pages kept for requests in flight; they are encoded instead.",
)
CHUNKS = CounterDefinition(
    name="mfalcon_chunks",
    help="Chunks read from or written to Redis.",
    section=SHARED_SECTION,
    labels=("direction",),
    values={"direction": ("read", "written")},
    needs="--redis-url",
    tells="Those that were read are counted if they were used.",
)
CHUNK_BYTES = CounterDefinition(
    name="mfalcon_chunk_bytes",
    help="Bytes of chunks read from or written to Redis.",
    section=SHARED_SECTION,
    labels=("direction",),
    values={"direction": ("read", "written")},
    needs="--redis-url",
)
CHUNKS_REJECTED = CounterDefinition(
    name="mfalcon_chunks_rejected",
    help="Chunks read from Redis that were not used, by reason.",
    section=SHARED_SECTION,
    labels=("reason",),
    needs="--redis-url",
    tells="`history`: of an older life of the user, normal after deletions and slides; `model`, `dtype`, `shape`: "
    "another checkpoint under the same name; `checksum`, `truncated`, `magic`, `format`, `range`: damage; `finite`: "
    "NaN or infinity in good bytes, from a forger or another replica that computes wrongly; `decode`: good chunks that "
    "became no state, for a cause that the log has once; `mac`, `user`: forgery or a wrong secret.",
)
WRITE_BEHIND_WAITING = GaugeDefinition(
    name="mfalcon_write_behind_waiting",
    help="KV states waiting to be written to Redis.",
    section=SHARED_SECTION,
    needs="--redis-url",
)
WRITE_BEHIND_DROPPED = CounterDefinition(
    name="mfalcon_write_behind_dropped",
    help="KV states that were not written to Redis, by reason.",
    section=SHARED_SECTION,
    labels=("reason",),
    needs="--redis-url",
    tells="`full`: more than `--write-behind-mb`; `unavailable`, `refused` (out of memory, read-only), `budget`, "
    "`deleted`, `closing`, `failed`.",
)

# --- Redis itself.

REDIS_SECONDS = HistogramDefinition(
    name="mfalcon_redis_seconds",
    help="Time of calls to Redis.",
    section=REDIS_SECTION,
    labels=("op",),
    buckets=_FAST,
    needs="--redis-url",
    tells="Only calls that were answered count.",
)
REDIS_ERRORS = CounterDefinition(
    name="mfalcon_redis_errors",
    help="Calls that Redis did not answer well.",
    section=REDIS_SECTION,
    labels=("op", "reason"),
    needs="--redis-url",
    tells="`timeout`, `connection`: count towards the breaker; `busy`: all our connections were in use; `auth`, "
    "`loading`, `moved`, `clusterdown`, `oom`, `readonly`, `permission`, `error`: refusals, which keep nobody waiting; "
    "`breaker`: not tried.",
)
REDIS_BREAKER_OPEN = GaugeDefinition(
    name="mfalcon_redis_breaker_open",
    help="1 while a Redis node is not tried.",
    section=REDIS_SECTION,
    labels=("node",),
    needs="--redis-url",
    tells="A node's name is empty where there is no cluster. Bring Redis back.",
)
REDIS_BREAKER_OPENED = CounterDefinition(
    name="mfalcon_redis_breaker_opened",
    help="Times that a breaker opened.",
    section=REDIS_SECTION,
    needs="--redis-url",
)

# --- Event logs of every kind.

APPENDED_EVENTS = CounterDefinition(
    name="mfalcon_appended_events",
    help="Events that were acknowledged, without those that a repeated append brought again.",
    section=LOG_SECTION,
)
LATE_EVENTS = CounterDefinition(
    name="mfalcon_late_events",
    help="Acknowledged events that came late, by what became of them.",
    section=LOG_SECTION,
    labels=("fate",),
    values={"fate": ("inserted", "clamped", "discarded")},
    tells='They are older than one before them ([state.md](state.md), "Late events"): `inserted`, `clamped`, or '
    "`discarded` because they are older than all that is kept of their user. Many mean a producer that lags, or that "
    "is not ordered by user.",
)
DELETED_USERS = CounterDefinition(
    name="mfalcon_deleted_users",
    help="Users deleted from this process's memory, by who asked.",
    section=LOG_SECTION,
    labels=("by",),
    values={"by": ("us", "replica", "bounds", "gap")},
    tells="`us`, `replica`: by DeleteUser, here or elsewhere; `bounds`: evicted from a log for its bounds; `gap`: "
    "everything was dropped because some deletions may have been missed.",
)
LOG_READS = CounterDefinition(
    name="mfalcon_log_reads",
    help="Reads of the event log in Redis: unchanged, delta, full or stale.",
    section=LOG_SECTION,
    labels=("kind",),
    values={"kind": ("unchanged", "delta", "full", "stale")},
    needs="--redis-url",
    tells="`stale`: answered without Redis.",
)
LOG_CONFLICTS = CounterDefinition(
    name="mfalcon_log_conflicts",
    help="Appends that met another writer and were tried again.",
    section=LOG_SECTION,
    needs="--redis-url",
    tells="Or they met an older copy of ours.",
)
LOG_NOT_DURABLE = CounterDefinition(
    name="mfalcon_log_not_durable",
    help="Appends and deletions that were written, but not as durably as asked in time.",
    section=LOG_SECTION,
    needs="--append-durability",
    tells="A replica of Redis lags or is away, or its disk is slow.",
)
LOG_TRIMS = CounterDefinition(
    name="mfalcon_log_trims",
    help="Times that a user's log was cut.",
    section=LOG_SECTION,
    needs="--redis-url",
    tells="The window rule cuts them.",
)
LOG_DAMAGED = CounterDefinition(
    name="mfalcon_log_damaged",
    help="Reads and appends that found no log of the user in its place, by reason.",
    section=LOG_SECTION,
    labels=("reason",),
    tells='It counts those in Redis ([operations.md](operations.md), "Damaged logs") or on disk (`hash`, `pages`).',
)
LOG_QUARANTINED = CounterDefinition(
    name="mfalcon_log_quarantined",
    help="Damaged logs that were moved away, by reason.",
    section=LOG_SECTION,
    labels=("reason",),
    needs="--damaged-log start-empty",
)
LOG_ROLLBACKS = CounterDefinition(
    name="mfalcon_log_rollbacks",
    help="Logs that lost what this process knew of them.",
    section=LOG_SECTION,
    needs="--redis-url",
    tells="There was a failover to a Redis that lagged, or an older file. `lost_events` of an append says how much.",
)
LOG_SWEPT = CounterDefinition(
    name="mfalcon_log_swept",
    help="Logs in Redis whose age was looked at.",
    section=LOG_SECTION,
    needs="--log-max-age-days",
)
LOG_EXPIRED = CounterDefinition(
    name="mfalcon_log_expired",
    help="Logs in Redis that were deleted for their age.",
    section=LOG_SECTION,
    needs="--log-max-age-days",
    tells='They count as `mfalcon_deleted_users_total{by="bounds"}` too.',
)

# --- An event log on one machine.

LOG_USERS = GaugeDefinition(
    name="mfalcon_log_users",
    help="Users in the event log of this process.",
    section=LOCAL_LOG_SECTION,
)
LOG_EVENTS = GaugeDefinition(
    name="mfalcon_log_events",
    help="Events kept in the event log of this process.",
    section=LOCAL_LOG_SECTION,
)
LOG_BYTES = GaugeDefinition(
    name="mfalcon_log_bytes",
    help="Bytes of memory, or of the file, that the event log takes.",
    section=LOCAL_LOG_SECTION,
)
LOG_BUDGET_BYTES = GaugeDefinition(
    name="mfalcon_log_budget_bytes",
    help="Bytes that the event log may take, 0 without a bound.",
    section=LOCAL_LOG_SECTION,
    tells="`--log-budget-mb` sets it.",
)
LOG_OLDEST = GaugeDefinition(
    name="mfalcon_log_oldest_seconds",
    help="Time since the user who was not asked for longest was, 0 without users.",
    section=LOCAL_LOG_SECTION,
)
LOG_EVICTED = CounterDefinition(
    name="mfalcon_log_evicted",
    help="Users deleted from the event log to keep its bounds.",
    section=LOCAL_LOG_SECTION,
    labels=("reason",),
    values={"reason": ("bytes", "users", "idle")},
)
LOG_REFUSED = CounterDefinition(
    name="mfalcon_log_refused",
    help="Appends of new users that were refused, by the bound.",
    section=LOCAL_LOG_SECTION,
    labels=("bound",),
    values={"bound": ("bytes", "users")},
    tells="Raise `--log-budget-mb` or `--log-max-users`, or choose who goes (`--log-max-idle-s`, `--log-when-full "
    "evict`).",
)
LOG_COMMIT_SECONDS = HistogramDefinition(
    name="mfalcon_log_commit_seconds",
    help="Time of a commit to the file.",
    section=LOCAL_LOG_SECTION,
    buckets=(*_FAST, 2.0),
    needs="--log-dir",
    tells="It includes the fsync.",
)
LOG_COMMIT_CHANGES = HistogramDefinition(
    name="mfalcon_log_commit_changes",
    help="Appends and deletions in a commit.",
    section=LOCAL_LOG_SECTION,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    needs="--log-dir",
)
LOG_FAILED = CounterDefinition(
    name="mfalcon_log_failed",
    help="Appends and deletions that the file did not take.",
    section=LOCAL_LOG_SECTION,
    labels=("reason",),
    values={"reason": ("full", "error")},
    needs="--log-dir",
    tells="`full`: the disk needs room; `error`: the log explains it.",
)
LOG_JOURNAL_BYTES = GaugeDefinition(
    name="mfalcon_log_journal_bytes",
    help="Bytes of the file's journal.",
    section=LOCAL_LOG_SECTION,
    needs="--log-dir",
    tells="Above some 100 MiB somebody reads from it for long.",
)
LOG_VERIFIED = GaugeDefinition(
    name="mfalcon_log_verified_ratio",
    help="Share of the users whose log was checked since the start.",
    section=LOCAL_LOG_SECTION,
    needs="--log-dir",
)
LOG_DAMAGED_USERS = GaugeDefinition(
    name="mfalcon_log_damaged_users",
    help="Users whose log that check found damaged, at least.",
    section=LOCAL_LOG_SECTION,
    needs="--log-dir",
    tells="The log names the first. Look at the disk, and restore a backup.",
)

# --- Counters of items.

COUNTED_EVENTS = CounterDefinition(
    name="mfalcon_counted_events",
    help="Acknowledged events that this process counted.",
    section=COUNTERS_SECTION,
    tells='[state.md](state.md), "Counters", says how.',
)
COUNTED_ITEMS = GaugeDefinition(
    name="mfalcon_counted_items",
    help="Items with counters in this process.",
    section=COUNTERS_SECTION,
)
COUNTERS_VERSION = GaugeDefinition(
    name="mfalcon_counters_version",
    help="Version of the item counters in this process.",
    section=COUNTERS_SECTION,
    tells="Answers name it; it is that of the store that changed last.",
)
COUNTERS_LEFT_OUT = CounterDefinition(
    name="mfalcon_counters_left_out",
    help="Items that were not counted because there are too many.",
    section=COUNTERS_SECTION,
    tells="There are `--counters-max-items` others.",
)
COUNTERS_RECOUNTED = CounterDefinition(
    name="mfalcon_counters_recounted",
    help="Histories that had events between counted ones which were not counted, by how that was mended.",
    section=COUNTERS_SECTION,
    labels=("how",),
    values={"how": ("whole", "guess")},
    tells="A writer died. `whole`: counted anew. `guess`: the first events are trimmed, so as many of the last ones "
    'were counted instead ([state.md](state.md), "Counters").',
)
COUNTERS_FAILED = CounterDefinition(
    name="mfalcon_counters_failed",
    help="Times that events could not be counted, which is done later.",
    section=COUNTERS_SECTION,
    needs="--redis-url",
)
COUNTERS_WAITING = GaugeDefinition(
    name="mfalcon_counters_waiting",
    help="Users whose events could not be counted yet.",
    section=COUNTERS_SECTION,
    needs="--redis-url",
    tells="It takes no action to end: they are counted once Redis takes writes.",
)
COUNTERS_SWEPT = CounterDefinition(
    name="mfalcon_counters_swept",
    help="Users who were taken out because their log is gone.",
    section=COUNTERS_SECTION,
    needs="--redis-url",
    tells="Nobody deleted them: a Redis lost data, or somebody removed keys.",
)
COUNTERS_STALE_READS = CounterDefinition(
    name="mfalcon_counters_stale_reads",
    help="Reads of item counters that may have lacked events.",
    section=COUNTERS_SECTION,
    needs="--redis-url",
    tells="The answers say so (`counters_stale`).",
)
COUNTERS_COPIED = CounterDefinition(
    name="mfalcon_counters_copied",
    help="Copies that were begun of all item counters.",
    section=COUNTERS_SECTION,
    needs="--redis-url",
    tells="There is one at the start; there are more if Redis lost data or this replica fell behind.",
)

# --- Captured requests.

CAPTURED = CounterDefinition(
    name="mfalcon_captured",
    help="Requests that were captured.",
    section=CAPTURES_SECTION,
    needs="capture_dir",
    tells="[capture.md](capture.md) says of whom, and what.",
)
CAPTURED_BYTES = CounterDefinition(
    name="mfalcon_captured_bytes",
    help="Bytes written to files of captured requests.",
    section=CAPTURES_SECTION,
    needs="capture_dir",
)
CAPTURE_DROPPED = CounterDefinition(
    name="mfalcon_capture_dropped",
    help="Sampled requests that were not captured.",
    section=CAPTURES_SECTION,
    labels=("reason",),
    values={"reason": ("queue", "disk", "deleted", "no_history", "failed")},
    needs="capture_dir",
    tells="`queue`: as much as may be waits for the disk; `disk`: it refused, the log says why; `deleted`: the user "
    "was deleted meanwhile; `no_history`: no model of this server read one; `failed`: by a fault, the log says which.",
)
CAPTURE_DISK_BYTES = GaugeDefinition(
    name="mfalcon_capture_disk_bytes",
    help="Bytes of all files of captured requests.",
    section=CAPTURES_SECTION,
    needs="capture_dir",
    tells="`capture_mb` bounds them.",
)
CAPTURE_USERS = GaugeDefinition(
    name="mfalcon_capture_users",
    help="Users who have a key for their captured requests.",
    section=CAPTURES_SECTION,
    needs="capture_dir",
)
CAPTURE_DELETED_USERS = CounterDefinition(
    name="mfalcon_capture_deleted_users",
    help="Users whose captured requests a deletion made unreadable.",
    section=CAPTURES_SECTION,
    needs="capture_dir",
)

# --- Certificates.

TLS_CERTIFICATE_EXPIRY = GaugeDefinition(
    name="mfalcon_tls_certificate_expiry_timestamp_seconds",
    help="When the certificate that is served expires, in Unix time.",
    section=CERTIFICATES_SECTION,
    needs="--tls-cert-file",
)
TLS_CERTIFICATE_CHANGES = CounterDefinition(
    name="mfalcon_tls_certificate_changes",
    help="Changes of the certificate's files, by what became of them: replaced, or refused as bad.",
    section=CERTIFICATES_SECTION,
    labels=("outcome",),
    values={"outcome": ("replaced", "refused")},
    needs="--tls-cert-file",
    tells="After `refused` the certificate of before is served on; the log says what is wrong with the new one.",
)

# --- What is written down of requests.

ACCESS_LOG_LINES = CounterDefinition(
    name="mfalcon_access_log_lines",
    help="Lines of the access log, by what became of them.",
    section=WRITTEN_SECTION,
    labels=("outcome",),
    values={"outcome": ("written", "dropped", "failed")},
    needs="--access-log",
    frontends=True,
    tells="`dropped`: 8,192 lines wait for a file or pipe that takes none. `failed`: the disk is full, or the file "
    "cannot be opened; the log has the cause. [observability.md](observability.md) says more.",
)
SPANS = CounterDefinition(
    name="mfalcon_spans",
    help="Spans of traced requests, by what became of them.",
    section=WRITTEN_SECTION,
    labels=("outcome",),
    values={"outcome": ("sent", "failed", "dropped")},
    needs="--otlp-endpoint",
    frontends=True,
    tells="`failed`: the collector did not take them within 10 s; the log says so once. `dropped`: 4,096 wait for it. "
    "Nobody's request waits. [observability.md](observability.md) says more.",
)

# --- Processes. The library shows all but the threads by itself; with --frontends each has a label `frontend`.

RESIDENT_BYTES = GaugeDefinition(
    name="process_resident_memory_bytes",
    help="Resident memory size in bytes.",
    section=PROCESS_SECTION,
    frontends=True,
)
VIRTUAL_BYTES = GaugeDefinition(
    name="process_virtual_memory_bytes",
    help="Virtual memory size in bytes.",
    section=PROCESS_SECTION,
    frontends=True,
)
CPU_SECONDS = CounterDefinition(
    name="process_cpu_seconds",
    help="Total user and system CPU time spent in seconds.",
    section=PROCESS_SECTION,
    frontends=True,
)
START_TIME = GaugeDefinition(
    name="process_start_time_seconds",
    help="Start time of the process since unix epoch in seconds.",
    section=PROCESS_SECTION,
    frontends=True,
    tells="That it changes is a restart.",
)
OPEN_FDS = GaugeDefinition(
    name="process_open_fds",
    help="Number of open file descriptors.",
    section=PROCESS_SECTION,
    frontends=True,
)
MAX_FDS = GaugeDefinition(
    name="process_max_fds",
    help="Maximum number of open file descriptors.",
    section=PROCESS_SECTION,
    frontends=True,
    tells="`ulimit -n` sets it.",
)
THREADS = GaugeDefinition(
    name="process_threads",
    help="Number of OS threads in the process.",
    section=PROCESS_SECTION,
    frontends=True,
)
PYTHON_INFO = GaugeDefinition(
    name="python_info",
    help="Python platform information",
    section=PROCESS_SECTION,
    labels=("implementation", "major", "minor", "patchlevel", "version"),
)

FRONTEND_RESTARTS = CounterDefinition(
    name="mfalcon_frontend_restarts",
    help="Times that a front-end ended and was started again.",
    section=PROCESS_SECTION,
    labels=("frontend",),
    needs="--frontends",
    tells="The log says how each ended.",
)

METRICS: Final[tuple[Metric, ...]] = tuple(
    value
    for value in list(globals().values())
    if isinstance(value, CounterDefinition | GaugeDefinition | HistogramDefinition)
)
"""All of them, in the order of this file: an entry above is all that it takes to add one."""

"""KV states in Redis."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="KV states in Redis")

STATE_DECISIONS = CounterDefinition(
    name="mfalcon_state_decisions",
    help="Fetch or recompute, and why.",
    section=SECTION,
    labels=("choice", "reason"),
    needs="--redis-url",
    tells="It is decided where the host had too little. Reasons: `cheaper`, `meets deadline`, `only way`, `takes too "
    "long`, `redis unavailable` (the breaker is open).",
)
FETCHES_WITHOUT_ROOM = CounterDefinition(
    name="mfalcon_fetches_without_room",
    help="KV states from Redis for which no pages were free.",
    section=SECTION,
    needs="--redis-url",
    tells="They would have taken pages kept for requests in flight; they are encoded instead.",
)
CHUNKS = CounterDefinition(
    name="mfalcon_chunks",
    help="Chunks read from or written to Redis.",
    section=SECTION,
    labels=("direction",),
    values={"direction": ("read", "written")},
    needs="--redis-url",
    tells="Those that were read are counted if they were used.",
)
CHUNK_BYTES = CounterDefinition(
    name="mfalcon_chunk_bytes",
    help="Bytes of chunks read from or written to Redis.",
    section=SECTION,
    labels=("direction",),
    values={"direction": ("read", "written")},
    needs="--redis-url",
)
CHUNKS_REJECTED = CounterDefinition(
    name="mfalcon_chunks_rejected",
    help="Chunks read from Redis that were not used, by reason.",
    section=SECTION,
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
    section=SECTION,
    needs="--redis-url",
)
WRITE_BEHIND_DROPPED = CounterDefinition(
    name="mfalcon_write_behind_dropped",
    help="KV states that were not written to Redis, by reason.",
    section=SECTION,
    labels=("reason",),
    needs="--redis-url",
    tells="`full`: more than `--write-behind-mb`; `unavailable`, `refused` (out of memory, read-only), `budget`, "
    "`deleted`, `closing`, `failed`.",
)

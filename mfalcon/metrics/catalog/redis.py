"""Redis itself."""

from mfalcon.metrics.definition import CALL_SECONDS, CounterDefinition, GaugeDefinition, HistogramDefinition, Section

SECTION = Section(title="Redis")

REDIS_SECONDS = HistogramDefinition(
    name="mfalcon_redis_seconds",
    help="Time of calls to Redis.",
    section=SECTION,
    labels=("op",),
    buckets=CALL_SECONDS,
    needs="--redis-url",
    tells="Only calls that were answered count.",
)
REDIS_ERRORS = CounterDefinition(
    name="mfalcon_redis_errors",
    help="Calls that Redis did not answer well.",
    section=SECTION,
    labels=("op", "reason"),
    needs="--redis-url",
    tells="`timeout`, `connection`: count towards the breaker; `busy`: all our connections were in use; `auth`, "
    "`loading`, `moved`, `clusterdown`, `oom`, `readonly`, `permission`, `error`: refusals, which keep nobody waiting; "
    "`breaker`: not tried.",
)
REDIS_BREAKER_OPEN = GaugeDefinition(
    name="mfalcon_redis_breaker_open",
    help="1 while a Redis node is not tried.",
    section=SECTION,
    labels=("node",),
    needs="--redis-url",
    tells="A node's name is empty where there is no cluster. Bring Redis back.",
)
REDIS_BREAKER_OPENED = CounterDefinition(
    name="mfalcon_redis_breaker_opened",
    help="Times that a breaker opened.",
    section=SECTION,
    needs="--redis-url",
)

"""KV states in this process."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

STATES_SECTION = Section(title="KV states")
GPU_SECTION = Section(title="KV states on a GPU")

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

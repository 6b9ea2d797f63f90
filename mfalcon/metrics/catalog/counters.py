"""Counters of items."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="Counters of items")

COUNTED_EVENTS = CounterDefinition(
    name="mfalcon_counted_events",
    help="Acknowledged events that this process counted.",
    section=SECTION,
    tells='[state.md](state.md), "Counters", says how.',
)
COUNTED_ITEMS = GaugeDefinition(
    name="mfalcon_counted_items",
    help="Items with counters in this process.",
    section=SECTION,
)
COUNTERS_VERSION = GaugeDefinition(
    name="mfalcon_counters_version",
    help="Version of the item counters in this process.",
    section=SECTION,
    tells="Answers name it; it is that of the store that changed last.",
)
COUNTERS_LEFT_OUT = CounterDefinition(
    name="mfalcon_counters_left_out",
    help="Items that were not counted because there are too many.",
    section=SECTION,
    tells="There are `--counters-max-items` others.",
)
COUNTERS_RECOUNTED = CounterDefinition(
    name="mfalcon_counters_recounted",
    help="Histories that had events between counted ones which were not counted, by how that was mended.",
    section=SECTION,
    labels=("how",),
    values={"how": ("whole", "guess")},
    tells="A writer died. `whole`: counted anew. `guess`: the first events are trimmed, so as many of the last ones "
    'were counted instead ([state.md](state.md), "Counters").',
)
COUNTERS_FAILED = CounterDefinition(
    name="mfalcon_counters_failed",
    help="Times that events could not be counted, which is done later.",
    section=SECTION,
    needs="--redis-url",
)
COUNTERS_WAITING = GaugeDefinition(
    name="mfalcon_counters_waiting",
    help="Users whose events could not be counted yet.",
    section=SECTION,
    needs="--redis-url",
    tells="It takes no action to end: they are counted once Redis takes writes.",
)
COUNTERS_SWEPT = CounterDefinition(
    name="mfalcon_counters_swept",
    help="Users who were taken out because their log is gone.",
    section=SECTION,
    needs="--redis-url",
    tells="Nobody deleted them: a Redis lost data, or somebody removed keys.",
)
COUNTERS_STALE_READS = CounterDefinition(
    name="mfalcon_counters_stale_reads",
    help="Reads of item counters that may have lacked events.",
    section=SECTION,
    needs="--redis-url",
    tells="The answers say so (`counters_stale`).",
)
COUNTERS_COPIED = CounterDefinition(
    name="mfalcon_counters_copied",
    help="Copies that were begun of all item counters.",
    section=SECTION,
    needs="--redis-url",
    tells="There is one at the start; there are more if Redis lost data or this replica fell behind.",
)

"""Event logs of every kind."""

from mfalcon.metrics.definition import CounterDefinition, Section

SECTION = Section(title="Event log")

APPENDED_EVENTS = CounterDefinition(
    name="mfalcon_appended_events",
    help="Events that were acknowledged, without those that a repeated append brought again.",
    section=SECTION,
)
LATE_EVENTS = CounterDefinition(
    name="mfalcon_late_events",
    help="Acknowledged events that came late, by what became of them.",
    section=SECTION,
    labels=("fate",),
    values={"fate": ("inserted", "clamped", "discarded")},
    tells='They are older than one before them ([state.md](state.md), "Late events"): `inserted`, `clamped`, or '
    "`discarded` because they are older than all that is kept of their user. Many mean a producer that lags, or that "
    "is not ordered by user.",
)
DELETED_USERS = CounterDefinition(
    name="mfalcon_deleted_users",
    help="Users deleted from this process's memory, by who asked.",
    section=SECTION,
    labels=("by",),
    values={"by": ("us", "replica", "bounds", "gap")},
    tells="`us`, `replica`: by DeleteUser, here or elsewhere; `bounds`: evicted from a log for its bounds; `gap`: "
    "everything was dropped because some deletions may have been missed.",
)
LOG_READS = CounterDefinition(
    name="mfalcon_log_reads",
    help="Reads of the event log in Redis: unchanged, delta, full or stale.",
    section=SECTION,
    labels=("kind",),
    values={"kind": ("unchanged", "delta", "full", "stale")},
    needs="--redis-url",
    tells="`stale`: answered without Redis.",
)
LOG_CONFLICTS = CounterDefinition(
    name="mfalcon_log_conflicts",
    help="Appends that met another writer and were tried again.",
    section=SECTION,
    needs="--redis-url",
    tells="Or they met an older copy of ours.",
)
LOG_NOT_DURABLE = CounterDefinition(
    name="mfalcon_log_not_durable",
    help="Appends and deletions that were written, but not as durably as asked in time.",
    section=SECTION,
    needs="--append-durability",
    tells="A replica of Redis lags or is away, or its disk is slow.",
)
LOG_TRIMS = CounterDefinition(
    name="mfalcon_log_trims",
    help="Times that a user's log was cut.",
    section=SECTION,
    needs="--redis-url",
    tells="The window rule cuts them.",
)
LOG_DAMAGED = CounterDefinition(
    name="mfalcon_log_damaged",
    help="Reads and appends that found no log of the user in its place, by reason.",
    section=SECTION,
    labels=("reason",),
    tells='It counts those in Redis ([operations.md](operations.md), "Damaged logs") or on disk (`hash`, `pages`).',
)
LOG_QUARANTINED = CounterDefinition(
    name="mfalcon_log_quarantined",
    help="Damaged logs that were moved away, by reason.",
    section=SECTION,
    labels=("reason",),
    needs="--damaged-log start-empty",
)
LOG_ROLLBACKS = CounterDefinition(
    name="mfalcon_log_rollbacks",
    help="Logs that lost what this process knew of them.",
    section=SECTION,
    needs="--redis-url",
    tells="There was a failover to a Redis that lagged, or an older file. `lost_events` of an append says how much.",
)
LOG_SWEPT = CounterDefinition(
    name="mfalcon_log_swept",
    help="Logs in Redis whose age was looked at.",
    section=SECTION,
    needs="--log-max-age-days",
)
LOG_EXPIRED = CounterDefinition(
    name="mfalcon_log_expired",
    help="Logs in Redis that were deleted for their age.",
    section=SECTION,
    needs="--log-max-age-days",
    tells='They count as `mfalcon_deleted_users_total{by="bounds"}` too.',
)

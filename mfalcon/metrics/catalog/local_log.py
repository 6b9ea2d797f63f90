"""An event log on one machine."""

from mfalcon.metrics.definition import CALL_SECONDS, CounterDefinition, GaugeDefinition, HistogramDefinition, Section

SECTION = Section(title="Event log on one machine")

LOG_USERS = GaugeDefinition(
    name="mfalcon_log_users",
    help="Users in the event log of this process.",
    section=SECTION,
)
LOG_EVENTS = GaugeDefinition(
    name="mfalcon_log_events",
    help="Events kept in the event log of this process.",
    section=SECTION,
)
LOG_BYTES = GaugeDefinition(
    name="mfalcon_log_bytes",
    help="Bytes of memory, or of the file, that the event log takes.",
    section=SECTION,
)
LOG_BUDGET_BYTES = GaugeDefinition(
    name="mfalcon_log_budget_bytes",
    help="Bytes that the event log may take, 0 without a bound.",
    section=SECTION,
    tells="`--log-budget-mb` sets it.",
)
LOG_OLDEST = GaugeDefinition(
    name="mfalcon_log_oldest_seconds",
    help="Time since the user who was not asked for longest was, 0 without users.",
    section=SECTION,
)
LOG_EVICTED = CounterDefinition(
    name="mfalcon_log_evicted",
    help="Users deleted from the event log to keep its bounds.",
    section=SECTION,
    labels=("reason",),
    values={"reason": ("bytes", "users", "idle")},
)
LOG_REFUSED = CounterDefinition(
    name="mfalcon_log_refused",
    help="Appends of new users that were refused, by the bound.",
    section=SECTION,
    labels=("bound",),
    values={"bound": ("bytes", "users")},
    tells="Raise `--log-budget-mb` or `--log-max-users`, or choose who goes (`--log-max-idle-s`, `--log-when-full "
    "evict`).",
)
LOG_COMMIT_SECONDS = HistogramDefinition(
    name="mfalcon_log_commit_seconds",
    help="Time of a commit to the file.",
    section=SECTION,
    buckets=(*CALL_SECONDS, 2.0),
    needs="--log-dir",
    tells="It includes the fsync.",
)
LOG_COMMIT_CHANGES = HistogramDefinition(
    name="mfalcon_log_commit_changes",
    help="Appends and deletions in a commit.",
    section=SECTION,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    needs="--log-dir",
)
LOG_FAILED = CounterDefinition(
    name="mfalcon_log_failed",
    help="Appends and deletions that the file did not take.",
    section=SECTION,
    labels=("reason",),
    values={"reason": ("full", "error")},
    needs="--log-dir",
    tells="`full`: the disk needs room; `error`: the log explains it.",
)
LOG_JOURNAL_BYTES = GaugeDefinition(
    name="mfalcon_log_journal_bytes",
    help="Bytes of the file's journal.",
    section=SECTION,
    needs="--log-dir",
    tells="Above some 100 MiB somebody reads from it for long.",
)
LOG_VERIFIED = GaugeDefinition(
    name="mfalcon_log_verified_ratio",
    help="Share of the users whose log was checked since the start.",
    section=SECTION,
    needs="--log-dir",
)
LOG_DAMAGED_USERS = GaugeDefinition(
    name="mfalcon_log_damaged_users",
    help="Users whose log that check found damaged, at least.",
    section=SECTION,
    needs="--log-dir",
    tells="The log names the first. Look at the disk, and restore a backup.",
)

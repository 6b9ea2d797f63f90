"""Captured requests."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="Captured requests")

CAPTURED = CounterDefinition(
    name="mfalcon_captured",
    help="Requests that were captured.",
    section=SECTION,
    needs="capture_dir",
    tells="[capture.md](capture.md) says of whom, and what.",
)
CAPTURED_BYTES = CounterDefinition(
    name="mfalcon_captured_bytes",
    help="Bytes written to files of captured requests.",
    section=SECTION,
    needs="capture_dir",
)
CAPTURE_DROPPED = CounterDefinition(
    name="mfalcon_capture_dropped",
    help="Sampled requests that were not captured.",
    section=SECTION,
    labels=("reason",),
    values={"reason": ("queue", "disk", "deleted", "no_history", "failed")},
    needs="capture_dir",
    tells="`queue`: as much as may be waits for the disk; `disk`: it refused, the log says why; `deleted`: the user "
    "was deleted meanwhile; `no_history`: no model of this server read one; `failed`: by a fault, the log says which.",
)
CAPTURE_DISK_BYTES = GaugeDefinition(
    name="mfalcon_capture_disk_bytes",
    help="Bytes of all files of captured requests.",
    section=SECTION,
    needs="capture_dir",
    tells="`capture_mb` bounds them.",
)
CAPTURE_USERS = GaugeDefinition(
    name="mfalcon_capture_users",
    help="Users who have a key for their captured requests.",
    section=SECTION,
    needs="capture_dir",
)
CAPTURE_DELETED_USERS = CounterDefinition(
    name="mfalcon_capture_deleted_users",
    help="Users whose captured requests a deletion made unreadable.",
    section=SECTION,
    needs="capture_dir",
)

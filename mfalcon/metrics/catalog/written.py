"""What is written down of requests."""

from mfalcon.metrics.definition import CounterDefinition, Section

SECTION = Section(title="Access log and traces")

ACCESS_LOG_LINES = CounterDefinition(
    name="mfalcon_access_log_lines",
    help="Lines of the access log, by what became of them.",
    section=SECTION,
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
    section=SECTION,
    labels=("outcome",),
    values={"outcome": ("sent", "failed", "dropped")},
    needs="--otlp-endpoint",
    frontends=True,
    tells="`failed`: the collector did not take them within 10 s; the log says so once. `dropped`: 4,096 wait for it. "
    "Nobody's request waits. [observability.md](observability.md) says more.",
)

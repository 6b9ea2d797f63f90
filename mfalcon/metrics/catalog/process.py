"""Processes. The library shows all but the threads by itself; with --frontends each has a label `frontend`."""

from mfalcon.metrics.definition import CounterDefinition, GaugeDefinition, Section

SECTION = Section(title="Processes")

RESIDENT_BYTES = GaugeDefinition(
    name="process_resident_memory_bytes",
    help="Resident memory size in bytes.",
    section=SECTION,
    frontends=True,
)
VIRTUAL_BYTES = GaugeDefinition(
    name="process_virtual_memory_bytes",
    help="Virtual memory size in bytes.",
    section=SECTION,
    frontends=True,
)
CPU_SECONDS = CounterDefinition(
    name="process_cpu_seconds",
    help="Total user and system CPU time spent in seconds.",
    section=SECTION,
    frontends=True,
)
START_TIME = GaugeDefinition(
    name="process_start_time_seconds",
    help="Start time of the process since unix epoch in seconds.",
    section=SECTION,
    frontends=True,
    tells="That it changes is a restart.",
)
OPEN_FDS = GaugeDefinition(
    name="process_open_fds",
    help="Number of open file descriptors.",
    section=SECTION,
    frontends=True,
)
MAX_FDS = GaugeDefinition(
    name="process_max_fds",
    help="Maximum number of open file descriptors.",
    section=SECTION,
    frontends=True,
    tells="`ulimit -n` sets it.",
)
THREADS = GaugeDefinition(
    name="process_threads",
    help="Number of OS threads in the process.",
    section=SECTION,
    frontends=True,
)
PYTHON_INFO = GaugeDefinition(
    name="python_info",
    help="Python platform information",
    section=SECTION,
    labels=("implementation", "major", "minor", "patchlevel", "version"),
)

FRONTEND_RESTARTS = CounterDefinition(
    name="mfalcon_frontend_restarts",
    help="Times that a front-end ended and was started again.",
    section=SECTION,
    labels=("frontend",),
    needs="--frontends",
    tells="The log says how each ended.",
)

"""What the process takes of its machine."""

from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector

_TASKS = Path("/proc/self/task")


def count_process(registry: CollectorRegistry) -> None:
    """Show memory, processor time, descriptors and threads (on Linux), and what Python this is."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    if _TASKS.is_dir():
        threads = Gauge("process_threads", "Number of OS threads in the process.", registry=registry)
        threads.set_function(lambda: sum(1 for _ in _TASKS.iterdir()))

"""What the process takes of its machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mfalcon.metrics.catalog import process


class ThreadCollector(Collector):
    """The threads of a process, which the client's own collector leaves out (on Linux)."""

    def __init__(self, pid: Callable[[], int | str] = lambda: "self") -> None:
        self._pid = pid

    def collect(self) -> Iterator[Metric]:
        """Nothing where there is no such process."""
        try:
            threads = sum(1 for _ in Path(f"/proc/{self._pid()}/task").iterdir())
        except OSError:
            return
        yield GaugeMetricFamily(process.THREADS.name, process.THREADS.help, value=threads)


def count_process(registry: CollectorRegistry) -> None:
    """Show memory, processor time, descriptors and threads (on Linux), and what Python this is."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(ThreadCollector())

"""What a process tells of itself."""

import threading

from prometheus_client import CollectorRegistry

from mfalcon.metrics.process import count_process


def test_threads_are_counted_when_somebody_looks() -> None:
    registry = CollectorRegistry()
    count_process(registry)
    before = registry.get_sample_value("process_threads")
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    now = registry.get_sample_value("process_threads")
    ended.set()
    thread.join()
    assert before is not None and now == before + 1

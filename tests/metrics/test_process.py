"""What a process tells of itself."""

import asyncio
import threading
import time

from prometheus_client import CollectorRegistry

from mfalcon.metrics.process import ProcessMetrics


async def test_a_loop_that_is_held_up_is_seen() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(ProcessMetrics(registry).watch_loop())
    await asyncio.sleep(0)  # it begins to sleep
    time.sleep(0.3)  # noqa: ASYNC251 (what it is to see)
    while not registry.get_sample_value("mfalcon_loop_lag_seconds_count"):  # noqa: ASYNC110 (a counter has no event)
        await asyncio.sleep(0)
    watching.cancel()
    lag = registry.get_sample_value("mfalcon_loop_lag_seconds_sum")
    assert lag is not None and lag > 0.2
    assert registry.get_sample_value("mfalcon_loop_lag_seconds_bucket", {"le": "0.2"}) == 0


def test_threads_are_counted_when_somebody_looks() -> None:
    registry = CollectorRegistry()
    ProcessMetrics(registry)
    before = registry.get_sample_value("process_threads")
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    now = registry.get_sample_value("process_threads")
    ended.set()
    thread.join()
    assert before is not None and now == before + 1

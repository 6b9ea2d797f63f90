"""A loop that does not keep up is seen."""

import asyncio
import time

from prometheus_client import CollectorRegistry

from mfalcon.metrics.loop_lag import LoopLag

ENGINE = {"frontend": ""}


async def test_a_loop_that_is_held_up_is_seen() -> None:
    registry = CollectorRegistry()
    watching = asyncio.create_task(LoopLag(registry).watch())
    await asyncio.sleep(0)  # it begins to sleep
    time.sleep(0.3)  # noqa: ASYNC251 (what it is to see)
    while not registry.get_sample_value("mfalcon_loop_lag_seconds_count", ENGINE):  # noqa: ASYNC110 (a counter has no event)
        await asyncio.sleep(0)
    watching.cancel()
    lag = registry.get_sample_value("mfalcon_loop_lag_seconds_sum", ENGINE)
    assert lag is not None and lag > 0.2
    assert registry.get_sample_value("mfalcon_loop_lag_seconds_bucket", ENGINE | {"le": "0.2"}) == 0

"""What an engine counts: stages of its answers, its queue, its heartbeat, and why others had no answer."""

import asyncio
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from types import FrameType

import pytest

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import DeadlineExceeded, Overloaded
from mfalcon.history.history import History
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.tier import Entry
from mfalcon.types import Append
from tests.engine.replicas import value
from tests.small import random_events, rank_request, small_checkpoint

CHECKPOINT = small_checkpoint()
MODEL = "main"
REQUEST = rank_request("ann", CHECKPOINT.items.item_id[:9].tolist())
SECONDS = 60
STAGES = ("log", "fetch", "queue", "encode", "score")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    config = EngineConfig(threads=1, queue_size=2, ranker=RankerOptions(name=MODEL, microbatch=16))
    engine = compose(CHECKPOINT, config)
    engine.wait_ready(SECONDS)
    await engine.append_events("ann", Append(random_events(40), 0))
    yield engine
    await asyncio.wait_for(engine.close(), SECONDS)


async def test_free_pages_are_known_before_the_first_request(engine: Engine) -> None:
    total, free = (value(engine.metrics, f"mfalcon_pool_{name}", model=MODEL) for name in ("pages", "free_pages"))
    assert free == total > 0
    num_bytes = value(engine.metrics, "mfalcon_pool_bytes", model=MODEL)
    assert value(engine.metrics, "mfalcon_pool_free_bytes", model=MODEL) == num_bytes > 0


class Gate:
    """Holds the device in the middle of a step."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    async def wait_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, SECONDS)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, right = Gate(), KVCache.lookup

    def lookup(self: KVCache, history: History, start: int, fetched: Entry | None, tags: bytes) -> Found | None:
        gate.reached.set()
        assert gate.open.wait(SECONDS)
        return right(self, history, start, fetched, tags)

    monkeypatch.setattr(KVCache, "lookup", lookup)
    yield gate
    gate.open.set()


def unanswered(engine: Engine, reason: str) -> float:
    return value(engine.metrics, "mfalcon_unanswered_total", model=MODEL, reason=reason)


async def test_each_stage_of_each_rank(engine: Engine) -> None:
    for _ in range(3):
        result = await engine.rank(REQUEST, None)
    await engine.prefill("ann", None)
    for stage in STAGES:
        assert value(engine.metrics, "mfalcon_stage_seconds_count", model=MODEL, stage=stage) == 3
    total = sum(value(engine.metrics, "mfalcon_stage_seconds_sum", model=MODEL, stage=stage) for stage in STAGES)
    assert total > 0
    assert result.timings.queue_us + result.timings.score_us <= 1e6 * total
    for name in ("batch_jobs", "slice_seconds", "cost_ratio"):
        assert value(engine.metrics, f"mfalcon_{name}_count", model=MODEL) >= 3
    assert not any(unanswered(engine, reason) for reason in ("refused", "late", "abandoned"))


async def test_no_rank_looks_a_metric_up_by_its_labels_again(engine: Engine) -> None:
    """That costs more than to count; a rank counts a score of things."""
    await engine.rank(REQUEST, None)
    await engine.rank(REQUEST, None)  # found, not encoded
    called = Counter[str]()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "prometheus_client" in frame.f_code.co_filename:
            called[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        await engine.rank(REQUEST, None)
    finally:
        sys.setprofile(None)
    # Features of the candidates have a stage of their own where they take a microsecond.
    assert called["observe"] in (len(STAGES), len(STAGES) + 1)
    assert not called["labels"]


async def test_the_queue_and_the_heartbeat_are_asked_when_somebody_looks(engine: Engine, gate: Gate) -> None:
    names = ("mfalcon_queue_jobs", "mfalcon_queue_seconds", "mfalcon_device_heartbeat_seconds")
    assert [value(engine.metrics, name) for name in names] == [0, 0, 0]
    asked = [asyncio.create_task(engine.rank(REQUEST, None))]
    await gate.wait_reached()
    asked.append(asyncio.create_task(engine.rank(REQUEST, None)))
    while not value(engine.metrics, "mfalcon_queue_jobs"):  # noqa: ASYNC110 (a gauge has no event)
        await asyncio.sleep(0.01)
    jobs, seconds, heartbeat = (value(engine.metrics, name) for name in names)
    assert jobs == 1 and seconds > 0 and heartbeat > 0
    await asyncio.sleep(0.01)
    assert value(engine.metrics, names[2]) > heartbeat
    gate.open.set()
    await asyncio.gather(*asked)
    await asyncio.wrap_future(engine.device.call(lambda: None))  # behind the end of that step
    assert [value(engine.metrics, name) for name in names] == [0, 0, 0]


async def test_why_a_rank_had_no_answer(engine: Engine, gate: Gate) -> None:
    asked = [asyncio.create_task(engine.rank(REQUEST, None))]
    await gate.wait_reached()
    abandoned = asyncio.create_task(engine.rank(REQUEST, None))
    too = asyncio.create_task(engine.rank(REQUEST, time.monotonic() + SECONDS))
    while value(engine.metrics, "mfalcon_queue_jobs") < 2:  # noqa: ASYNC110 (a gauge has no event)
        await asyncio.sleep(0.01)
    for refused in (engine.rank(REQUEST, None), engine.prefill("ann", None)):
        with pytest.raises(Overloaded):
            await refused
    abandoned.cancel()
    too.cancel()
    await asyncio.wait((abandoned, too))
    gate.open.set()
    await asyncio.gather(*asked)
    with pytest.raises(DeadlineExceeded):
        await engine.rank(REQUEST, time.monotonic())
    assert [unanswered(engine, reason) for reason in ("refused", "abandoned", "late")] == [2, 2, 1]


async def test_a_caller_whose_time_is_up_did_not_leave(engine: Engine, gate: Gate) -> None:
    asked = asyncio.create_task(engine.rank(REQUEST, None))
    await gate.wait_reached()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):  # long enough not to be refused for it, however slow this machine is
            await engine.rank(REQUEST, time.monotonic() + 1)
    gate.open.set()
    await asked
    assert unanswered(engine, "late") == 1

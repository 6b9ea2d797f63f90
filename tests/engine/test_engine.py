"""The engine: every accepted request gets exactly one answer, and it is right or it is an explicit error."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.job import RankJob
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.engine.runner import Answer, Runner
from mfalcon.engine.scheduler import Scheduler
from mfalcon.errors import (
    DeadlineExceeded,
    EngineFailure,
    HistoryMismatch,
    InvalidInput,
    Overloaded,
    ShuttingDown,
)
from mfalcon.history.history import History
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.tier import Entry
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import prefix_rankers
from mfalcon.types import Append, CacheInfo, CacheSource, Events, RankRequest, RankResult, no_events
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

HOST = CacheSource.HOST
BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7
ANSWER_SECONDS = 60
CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id
CONFIG = EngineConfig(threads=1, ranker=RankerOptions(microbatch=16))
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = compose(CHECKPOINT, CONFIG)
    engine.wait_ready(ANSWER_SECONDS)
    yield engine
    await asyncio.wait_for(engine.close(), ANSWER_SECONDS)


class Gate:
    """Holds the device thread at the start of its next step that ranks."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    async def wait_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, ANSWER_SECONDS)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, right = Gate(), Runner.advance

    def advance(self: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        if any(len(job.request.candidates) for job in jobs):
            gate.reached.set()
            assert gate.open.wait(ANSWER_SECONDS)
        return right(self, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", advance)
    yield gate
    gate.open.set()


def request(user_id: str = "ann", *, recent: Events | None = None, top_k: int = 0) -> RankRequest:
    return rank_request(user_id, ITEMS[:9].tolist(), recent=recent, top_k=top_k)


def assert_right(result: RankResult, history: Events, asked: RankRequest, checkpoint: Checkpoint = CHECKPOINT) -> None:
    assert np.abs(result.task_scores - cold_scores(checkpoint, history, asked).numpy()).max() <= BOUND
    assert result.history_len == len(history)


async def test_ten_requests_of_a_cold_user_cost_one_prefill(engine: Engine, here: CacheSource) -> None:
    history = random_events(20)
    await engine.append_events("ann", Append(history, 0))
    results = await asyncio.gather(*(engine.rank(request(), None) for _ in range(10)))
    assert sorted(result.cache.encoded_tokens for result in results) == [0] * 9 + [20]
    assert sum(result.cache.source is here for result in results) == 9
    for result in results:
        assert_right(result, history, request())


@pytest.mark.parametrize("architecture", prefix_rankers())
async def test_cold_hit_append_recent_and_slide(architecture: str, here: CacheSource) -> None:
    checkpoint = small_checkpoint(architecture)
    engine = compose(checkpoint, CONFIG)
    per_event, events = checkpoint.prefix_model.tokens_per_event, random_events(30)

    async def cache(length: int, recent: Events | None = None) -> CacheInfo:
        asked = request(recent=recent)
        result = await engine.rank(asked, None)
        assert_right(result, events[:length], asked, checkpoint)
        return result.cache

    none, host = CacheSource.NONE, here
    assert await cache(0) == CacheInfo(none, 0, 0)
    assert (await engine.append_events("ann", Append(events[:20]))).history_len == 20
    assert await cache(20) == CacheInfo(none, 0, 20 * per_event)
    assert await cache(20) == CacheInfo(host, 20 * per_event, 0)
    assert await cache(20, events[20:23]) == CacheInfo(host, 20 * per_event, 3 * per_event)
    assert (await engine.append_events("ann", Append(events[20:22], 20))).history_len == 22
    assert await cache(22) == CacheInfo(host, 20 * per_event, 2 * per_event)
    assert (await engine.append_events("ann", Append(events[22:26], 22))).history_len == 26
    assert await cache(26) == CacheInfo(none, 0, 18 * per_event)
    assert (await engine.append_events("ann", Append(events[26:], 26))).history_len == 30
    assert await engine.prefill("ann", None) == CacheInfo(host, 18 * per_event, 4 * per_event)
    assert await cache(30) == CacheInfo(host, 22 * per_event, 0)
    await engine.close()


async def test_an_unknown_user_is_ranked(engine: Engine) -> None:
    result = await engine.rank(request("nobody"), None)
    assert result.cache == CacheInfo(CacheSource.NONE, 0, 0)
    assert_right(result, no_events(), request("nobody"))
    assert await engine.prefill("nobody", None) == CacheInfo(CacheSource.NONE, 0, 0)
    await engine.delete_user("nobody")


async def test_unknown_items_and_ties(engine: Engine) -> None:
    asked = rank_request("ann", [5, int(ITEMS[0]), 6, int(ITEMS[0]), 7], top_k=5)
    result = await engine.rank(asked, None)
    assert result.unknown.tolist() == [0, 2, 4]
    assert result.top.tolist() in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


async def test_context_is_read(engine: Engine) -> None:
    asked = request()
    other = RankRequest(asked.user_id, asked.candidates, 0, asked.request_time_ms, asked.recent_events, {"surface": 2})
    one, two = await engine.rank(asked, None), await engine.rank(other, None)
    assert (one.scores != two.scores).all()
    assert_right(two, no_events(), other)


async def test_append_checks(engine: Engine) -> None:
    history = random_events(5)
    assert (await engine.append_events("ann", Append(history))).history_len == 5
    with pytest.raises(HistoryMismatch):
        await engine.append_events("ann", Append(history, 4))
    with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms"):
        await engine.append_events("ann", Append(random_events(1, 0, 1), 5))
    with pytest.raises(InvalidInput, match=r"recent_events\[0\]\.time_ms"):
        await engine.rank(request(recent=random_events(1, 0, 1)), None)
    assert (await engine.rank(request(), None)).history_len == 5


async def test_a_deadline_is_checked_before_device_work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("device work for a late request")

    monkeypatch.setattr(KVCache, "lookup", refuse)
    for work in (engine.rank(request(), time.monotonic()), engine.prefill("ann", time.monotonic() - 1)):
        with pytest.raises(DeadlineExceeded, match="while the request was queued"):
            await work


async def test_a_deadline_that_passes_in_the_queue(engine: Engine, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = list[RankJob]()
    right = Scheduler.submit

    def submit(scheduler: Scheduler, job: RankJob) -> None:
        right(scheduler, job)
        jobs.append(job)

    monkeypatch.setattr(Scheduler, "submit", submit)
    first = asyncio.create_task(engine.rank(request(), None))
    await gate.wait_reached()
    second = asyncio.create_task(engine.rank(request(), time.monotonic() + ANSWER_SECONDS))
    async with asyncio.timeout(ANSWER_SECONDS):
        while len(jobs) < 2:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0)
    jobs[1].deadline = time.monotonic()
    gate.open.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await second


async def test_overload_refuses_and_recovers(gate: Gate) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, queue_size=3, ranker=RankerOptions(microbatch=16)))
    accepted = [asyncio.create_task(engine.rank(request(), None))]
    await gate.wait_reached()
    accepted += [asyncio.create_task(engine.rank(request(), None)) for _ in range(3)]
    await asyncio.sleep(0)
    await engine.append_events("bob", Append(random_events(3)))
    for work in (engine.rank(request(), None), engine.prefill("ann", None)):
        with pytest.raises(Overloaded):
            await work
    deleting = asyncio.create_task(engine.delete_user("bob"))  # waits for no queue
    gate.open.set()
    await asyncio.gather(*accepted, deleting)
    assert (await engine.rank(request("bob"), None)).history_len == 0
    await engine.close()


async def test_a_failing_request_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KVCache.lookup

    def fail_for_bob(self: KVCache, history: History, start: int, fetched: Entry | None, tags: bytes) -> Found | None:
        if history.user_id == "bob":
            raise RuntimeError("CUDA error: an illegal memory access")
        return right(self, history, start, fetched, tags)

    monkeypatch.setattr(KVCache, "lookup", fail_for_bob)
    works = [engine.rank(request("bob" if i % 3 == 1 else f"user-{i}"), None) for i in range(9)]
    answers = await asyncio.gather(*works, return_exceptions=True)
    for i, answer in enumerate(answers):
        if i % 3 == 1:
            assert isinstance(answer, EngineFailure)
            assert "illegal memory" not in str(answer)
            assert isinstance(answer.__cause__, RuntimeError)
        else:
            assert isinstance(answer, RankResult)


async def test_a_forward_that_fails_halfway_leaves_the_state_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, here: CacheSource
) -> None:
    """An append that dies after it wrote some layers must not be found by the next one."""
    events = random_events(20)
    await engine.append_events("ann", Append(events[:15]))
    await engine.rank(request(), None)
    await engine.append_events("ann", Append(events[15:]))
    last = CHECKPOINT.prefix_model.stack.layers[-1]

    def die(*_: object) -> None:
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(type(last), "keep", die)
        if here is CacheSource.GPU:
            patch.setattr("kernels.gpu.stack.prefix_attention_parts", die)
        with pytest.raises(EngineFailure):
            await engine.rank(request(), None)
    result = await engine.rank(request(), None)
    assert result.cache == CacheInfo(here, 15, 5)
    assert_right(result, events, request())


async def test_a_cancelled_request_is_dropped_and_its_neighbours_are_not(engine: Engine, gate: Gate) -> None:
    first = asyncio.create_task(engine.rank(request(), None))
    await gate.wait_reached()
    second, third = (asyncio.create_task(engine.rank(request(f"user-{i}"), None)) for i in range(2))
    await asyncio.sleep(0)
    first.cancel()  # already on the device: its answer has nobody to go to
    second.cancel()
    await asyncio.sleep(0.01)
    gate.open.set()
    assert (await third).history_len == 0
    assert first.cancelled() and second.cancelled()
    assert (await engine.rank(request(), None)).history_len == 0


async def test_delete_forgets(engine: Engine) -> None:
    await engine.append_events("ann", Append(random_events(20)))
    await engine.rank(request(), None)
    assert engine.catalog.default.cache.num_bytes > 0
    await engine.delete_user("ann")
    assert engine.catalog.default.cache.num_bytes == 0
    result = await engine.rank(request(), None)
    assert result.cache == CacheInfo(CacheSource.NONE, 0, 0)
    assert_right(result, no_events(), request())


async def test_work_in_flight_brings_nothing_back(engine: Engine, gate: Gate) -> None:
    history = random_events(20)
    await engine.append_events("ann", Append(history))
    works = [asyncio.create_task(engine.rank(request(), None)) for _ in range(3)]
    works.append(
        asyncio.create_task(engine.rank(request(recent=random_events(2, 1, int(history["time_ms"][-1]))), None))
    )
    await gate.wait_reached()
    deleting = asyncio.create_task(engine.delete_user("ann"))
    await asyncio.sleep(0.01)
    assert not deleting.done()
    gate.open.set()
    await deleting
    assert engine.catalog.default.cache.num_bytes == 0
    for work in works:  # accepted before the deletion, answered with what they saw
        assert (await work).history_len == 20
    assert engine.catalog.default.cache.num_bytes == 0
    assert (await engine.rank(request(), None)).history_len == 0


async def test_a_deletion_whose_caller_left_is_still_done(engine: Engine, gate: Gate) -> None:
    """The history is gone at once; the state must not outlive it because the client hung up."""
    await engine.append_events("ann", Append(random_events(20)))
    await engine.prefill("ann", None)
    assert engine.catalog.default.cache.num_bytes > 0
    blocking = asyncio.create_task(engine.rank(request("bob"), None))
    await gate.wait_reached()
    deleting = asyncio.create_task(engine.delete_user("ann"))
    await asyncio.sleep(0)
    deleting.cancel()
    await asyncio.sleep(0.01)
    gate.open.set()
    await blocking
    await engine.rank(request("bob"), None)
    assert engine.catalog.default.cache.num_bytes == 0


async def test_shutdown_answers_everybody(gate: Gate) -> None:
    engine = compose(CHECKPOINT, CONFIG)
    works = [asyncio.create_task(engine.rank(request("user-0"), None))]
    await gate.wait_reached()
    works += [asyncio.create_task(engine.rank(request(f"user-{i}"), None)) for i in range(1, 5)]
    others = asyncio.gather(engine.prefill("ann", None), engine.delete_user("ann"), return_exceptions=True)
    await asyncio.sleep(0)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.01)
    with pytest.raises(ShuttingDown):
        await engine.rank(request(), None)
    gate.open.set()
    await closing
    first, *queued = await asyncio.gather(*works, return_exceptions=True)
    assert isinstance(first, RankResult)
    cut_off = [answer for answer in (*queued, *await others) if isinstance(answer, ShuttingDown)]
    assert [answer.may_be_done for answer in cut_off] == [False] * 5 + [True]  # the deletion: its history is gone
    assert not engine.ready
    await engine.close()


async def test_ready_from_warm_to_closed() -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1))
    await asyncio.to_thread(engine.wait_ready, ANSWER_SECONDS)
    assert engine.ready
    await engine.close()
    assert not engine.ready


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_cannot_start_says_so_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(LoadedRanker, "warm", no_memory)
    engine = compose(CHECKPOINT, EngineConfig(threads=1))
    early = asyncio.create_task(engine.rank(request(), None))
    await asyncio.sleep(0)
    with pytest.raises(EngineFailure, match="no memory"):
        await asyncio.to_thread(engine.wait_ready, ANSWER_SECONDS)
    for work in (early, asyncio.create_task(engine.rank(request(), None))):
        with pytest.raises((EngineFailure, ShuttingDown)):
            await asyncio.wait_for(work, ANSWER_SECONDS)
    await engine.close()


def test_model_info() -> None:
    loop_engine = compose(
        CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16, name="other", max_candidates=7))
    )
    info = loop_engine.model
    assert (info.name, info.architecture, info.max_history, info.max_candidates) == ("other", "dfgr", 24, 7)
    assert info.tasks == ("like", "rating")
    assert [feature.name for feature in info.context_features if feature.derived] == ["hour"]
    assert info.prefix_stable
    assert CHECKPOINT.fingerprint.startswith(info.version)
    asyncio.run(loop_engine.close())


async def test_stress_every_request_is_answered_once_and_rightly(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, here: CacheSource
) -> None:
    """64 clients, 20 users, three seconds of rank, append, prefill and delete; each score against a cold forward.

    In the interpreter, which takes a second for a batch, 12 and 5.
    """
    num_clients, num_users, seconds = (12, 5, 3.0) if here is CacheSource.GPU else (64, 20, 3.0)
    jobs: list[RankJob] = []
    right = Scheduler.submit

    def count(scheduler: Scheduler, job: RankJob) -> None:
        jobs.append(job)
        right(scheduler, job)

    monkeypatch.setattr(Scheduler, "submit", count)
    truth, leaving = dict[str, Events](), set[str]()
    checks: list[tuple[Events, RankRequest, RankResult]] = []
    stop, num_accepted = time.monotonic() + seconds, 0

    async def delete(user_id: str) -> None:
        leaving.add(user_id)
        await engine.delete_user(user_id)
        truth.pop(user_id, None)
        leaving.remove(user_id)

    async def somebody(rng: np.random.Generator) -> str:
        """A user whose deletion is not under way: until it is acknowledged it may have happened or not."""
        await asyncio.sleep(0)
        return str(rng.choice([name for i in range(num_users) if (name := f"user-{i}") not in leaving]))

    async def client(number: int) -> None:
        nonlocal num_accepted
        rng = np.random.default_rng(number)
        while time.monotonic() < stop:
            user_id = await somebody(rng)
            known = truth.get(user_id, no_events())
            last = int(known["time_ms"][-1]) if len(known) else 10**12
            new = random_events(int(rng.integers(1, 6)), int(rng.integers(2**31)), last)
            match rng.integers(0, 20):
                case 0:
                    await delete(user_id)
                case 1:
                    num_accepted += 1
                    await engine.prefill(user_id, None)
                case 2 | 3 | 4 | 5:
                    truth[user_id] = np.concatenate([known, new])
                    await engine.append_events(user_id, Append(new, len(known)))
                    await asyncio.sleep(0)
                case kind:
                    num_accepted += 1
                    candidates = rng.choice(ITEMS, int(rng.integers(1, 40))).tolist()
                    asked = rank_request(user_id, candidates, recent=new if kind < 9 else None)
                    checks.append((known, asked, await engine.rank(asked, None)))

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    assert len(jobs) == num_accepted and all(job.future.done() for job in jobs)
    assert len(checks) > (num_users if here is CacheSource.GPU else 100)
    for known, asked, result in checks:
        assert_right(result, known, asked)
        assert result.cache.reused_tokens + result.cache.encoded_tokens <= 24
    # A request read earlier may put a shorter state on the device than the one that was copied to the host before.
    assert {CacheSource.NONE, here} <= {one.cache.source for _, _, one in checks} <= {CacheSource.NONE, here, HOST}
    for number in range(num_users):
        await engine.delete_user(f"user-{number}")
    assert engine.catalog.default.cache.num_bytes == 0

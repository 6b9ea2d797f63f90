"""An engine whose pool is small: requests side by side share it, and nothing that failed keeps a page."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

import mfalcon.engine.engine
from mfalcon.algorithm import append_all
from mfalcon.backends.choice import choose
from mfalcon.backends.select import ServedModel
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.job import RankJob
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.runner import Answer, Runner
from mfalcon.engine.workers import WorkerPool
from mfalcon.errors import DeadlineExceeded, EngineFailure, Overloaded, ShuttingDown
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import EventTokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append, Events, RankRequest, RankResult, no_events
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id[:5].tolist()


@pytest.fixture
def many_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("here")
async def test_requests_that_fail_give_their_pages_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when a garbage collection happens to run: an idle server would refuse requests until then."""
    seconds = [0.05]

    def slow(served: ServedModel, states: list[KVState], deltas: list[EventTokens]) -> list[KVState]:
        longer = append_all(served, states, deltas)
        time.sleep(seconds[0])
        return longer

    monkeypatch.setattr("mfalcon.engine.encoding.append_all", slow)
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16, kv_budget_bytes=0)))
    engine.wait_ready()
    accounts = engine.catalog.default.prefix.pool.accounts
    for number in range(12):
        await engine.append_events(f"user-{number}", Append(random_events(24)))
    gc.collect()
    gc.disable()
    try:
        for number in range(12):
            with pytest.raises(DeadlineExceeded):
                await engine.rank(rank_request(f"user-{number}", ITEMS), time.monotonic() + 0.02)
        seconds[0] = 0.0
        await engine.rank(rank_request("user-0", ITEMS), None)
        for number in range(12):
            await engine.delete_user(f"user-{number}")
        assert accounts.num_free == accounts.num_pages
    finally:
        gc.enable()
        await engine.close()


@pytest.mark.usefixtures("here")
async def test_a_pool_in_use_is_overload_and_costs_nobody_else() -> None:
    """Of the very type that the transports have a row for."""
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16, kv_budget_bytes=0)))
    engine.wait_ready()
    await engine.append_events("ann", Append(random_events(20)))
    pool = engine.catalog.default.prefix.pool
    held = pool.empty().extend(torch.zeros(pool.accounts.num_pages * pool.layout.page_tokens, dtype=torch.int64))
    with pytest.raises(Overloaded, match="in use") as refused:
        await engine.rank(rank_request("ann", ITEMS), None)
    assert type(refused.value) is Overloaded
    del held
    assert len((await engine.rank(rank_request("ann", ITEMS), None)).scores) == len(ITEMS)
    await engine.close()


async def test_a_device_thread_that_ends_answers_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready()

    def broken(*_: object) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(Runner, "advance", broken)
    monkeypatch.setattr(Runner, "check_device", broken)
    asked = [engine.rank(rank_request("ann", ITEMS), None) for _ in range(3)]
    answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
    assert [type(answer) for answer in answers] == [EngineFailure, ShuttingDown, ShuttingDown], (
        "the rest may be retried"
    )
    assert not engine.ready
    assert engine.lost(60.0) == "the device thread ended: the device is lost"
    with pytest.raises(ShuttingDown, match="the device is lost, and the server ends; ask another one"):
        await engine.rank(rank_request("ann", ITEMS), None)
    await engine.close()


def worst_error(checkpoint: Checkpoint, answers: list[tuple[Events, RankRequest, RankResult]]) -> float:
    """Of a hundred answers drawn at random, against the same window encoded from nothing."""
    worst = 0.0
    for index in np.random.default_rng(0).permutation(len(answers))[:100]:
        known, asked, result = answers[index]
        worst = max(worst, float(np.abs(result.task_scores - cold_scores(checkpoint, known, asked).numpy()).max()))
    return worst


async def test_what_would_be_late_is_refused_at_once_unless_nothing_is_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready()
    request, go_on, right = rank_request("ann", ITEMS), threading.Event(), Runner.advance
    with pytest.raises(DeadlineExceeded):
        await engine.rank(request, time.monotonic() - 1)

    def slow(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        go_on.wait(0.3)
        return right(runner, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", slow)
    for _ in range(5):  # so that a queue of four means seconds, and how busy this machine is does not matter
        assert len((await engine.rank(request, time.monotonic() + 60)).scores) == len(ITEMS)
    monkeypatch.setattr(Runner, "advance", lambda runner, *args: go_on.wait(60) and right(runner, *args))
    waiting = [asyncio.create_task(engine.rank(request, None)) for _ in range(4)]
    async with asyncio.timeout(60):
        while engine.device.num_queued() != 3:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.001)
    for verb in (lambda deadline: engine.rank(request, deadline), lambda deadline: engine.prefill("ann", deadline)):
        with pytest.raises(Overloaded, match=r"deadline: got \d+ ms, must be at least \d+ ms behind 4 other requests"):
            await verb(time.monotonic() + 0.2)
    waiting.append(asyncio.create_task(engine.rank(request, time.monotonic() + 60)))
    await asyncio.sleep(0)
    go_on.set()
    for result in await asyncio.gather(*waiting):
        assert len(result.scores) == len(ITEMS)
    await engine.close()


class Hungry:
    """A device whose memory is too little for some steps: those for which `is_too_much`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_too_much: Callable[[int, float], bool]) -> None:
        self.steps: list[tuple[int, float]] = []
        right = Runner.advance

        def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
            self.steps.append((len(jobs), seconds))
            if is_too_much(len(jobs), seconds):
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")
            return right(runner, jobs, seconds)

        monkeypatch.setattr(Runner, "advance", advance)


async def test_what_is_too_much_for_the_memory_is_done_in_smaller_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready()
    hungry = Hungry(monkeypatch, lambda _, seconds: seconds > 0)
    assert len((await engine.rank(rank_request("ann", ITEMS), None)).scores) == len(ITEMS)
    assert [seconds > 0 for _, seconds in hungry.steps] == [True, False]
    await engine.close()


async def test_no_memory_at_all_is_overload_and_the_next_request_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready()
    with monkeypatch.context() as patch:
        Hungry(patch, lambda *_: True)
        with pytest.raises(Overloaded, match="the server has no memory left for this request"):
            await engine.rank(rank_request("ann", ITEMS), None)
    assert len((await engine.rank(rank_request("ann", ITEMS), None)).scores) == len(ITEMS)
    await engine.close()


async def test_a_step_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    engine.wait_ready()
    go_on, right = threading.Event(), Runner.advance

    def hangs(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        assert go_on.wait(60)
        return right(runner, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", hangs)
    asked = asyncio.create_task(engine.rank(rank_request("ann", ITEMS), None))
    async with asyncio.timeout(60):
        while (why := engine.lost(0.05)) is None:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.01)
    assert why == "a step of the device takes longer than 0.05 s"
    assert engine.lost(0.0) is None  # 0 waits for ever
    go_on.set()
    assert len((await asked).scores) == len(ITEMS)
    async with asyncio.timeout(60):
        while engine.lost(0.05) is not None:  # noqa: ASYNC110 (the answer comes before the end of the step)
            await asyncio.sleep(0.01)
    await engine.close()


@pytest.mark.usefixtures("many_switches")
@pytest.mark.parametrize("budget", [0, 300_000])
@pytest.mark.parametrize("int8", [False, True])
async def test_side_by_side_on_a_small_pool(monkeypatch: pytest.MonkeyPatch, budget: int, int8: bool) -> None:
    """Four lanes, 48 clients, 24 users: rank, append, prefill and delete; scores against a cold forward."""
    if int8 and choose("auto", torch.device("cpu"), torch.float32).kernel is None:
        pytest.skip("no compiled kernel")
    monkeypatch.setattr(mfalcon.engine.ranker, "measure_side_by_side", lambda *_: 10**6)
    sizes: set[int] = set()
    right = WorkerPool.run

    def counted(lanes: WorkerPool, work: object, items: list[object]) -> None:
        sizes.add(len(items))
        right(lanes, work, items)  # type: ignore[arg-type]

    monkeypatch.setattr(WorkerPool, "run", counted)
    checkpoint = small_checkpoint("dfgr", torch.float32, config=small_config("dfgr", max_history=300, window_chunk=64))
    items = checkpoint.items.item_id
    engine = compose(
        checkpoint,
        EngineConfig(
            threads=4, ranker=RankerOptions(microbatch=16, kv_budget_bytes=budget, kv_dtype="int8" if int8 else "auto")
        ),
    )
    engine.wait_ready()
    truth: dict[str, Events] = {}
    answers: list[tuple[Events, RankRequest, RankResult]] = []
    leaving: set[str] = set()
    stop = time.monotonic() + 1.5

    async def client(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while time.monotonic() < stop:
            user = f"user-{rng.integers(0, 24)}"
            if user in leaving:
                await asyncio.sleep(0)
                continue
            known = truth.get(user, no_events())
            last = int(known["time_ms"][-1]) if len(known) else 10**12
            new = random_events(int(rng.integers(1, 9)), int(rng.integers(2**31)), last)
            match int(rng.integers(0, 40)):
                case 0:
                    leaving.add(user)
                    await engine.delete_user(user)
                    truth.pop(user, None)
                    leaving.remove(user)
                case 1:
                    await engine.prefill(user, None)
                case number if number < 12:
                    truth[user] = np.concatenate([known, new])
                    await engine.append_events(user, Append(new, len(known)))
                    await asyncio.sleep(0)
                case number:
                    asked = rank_request(
                        user, rng.choice(items, int(rng.integers(1, 40))).tolist(), recent=new if number < 22 else None
                    )
                    answers.append((known, asked, await engine.rank(asked, None)))

    await asyncio.gather(*(client(seed) for seed in range(48)))
    assert 4 in sizes
    assert worst_error(checkpoint, answers) <= (0.05 if int8 else 1e-5)
    for number in range(24):
        await engine.delete_user(f"user-{number}")
    accounts = engine.catalog.default.prefix.pool.accounts
    assert accounts.num_free == accounts.num_pages
    await engine.close()

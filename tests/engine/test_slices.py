"""Work in slices: cuts move no score, a small request passes a large one, and who gives up half-way holds nothing."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mfalcon.engine.ranker
from mfalcon.backends.choice import choose
from mfalcon.backends.select import PoolBudget, reference, serve
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.job import RankJob
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.runner import Answer, Runner
from mfalcon.engine.scheduler import Scheduler
from mfalcon.engine.slices import fitting
from mfalcon.engine.workers import take_cores
from mfalcon.errors import DeadlineExceeded
from mfalcon.history.history import no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import prefix_rankers
from mfalcon.types import Append, CacheSource, Events, RankResult, no_events
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

CHECKPOINT = small_checkpoint(dtype=torch.float32, config=small_config(max_history=300, window_chunk=64))
ITEMS = np.tile(CHECKPOINT.items.item_id, 40)
SHORTEST = 1e-9
"""Seconds that nothing fits into: each slice is the least that is done at all."""
LIMIT_S = 30


@pytest.fixture(autouse=True)
def one_core() -> None:
    take_cores(1)


def runner_of(checkpoint: Checkpoint, backend: str = "reference") -> tuple[Runner, KVCache]:
    if backend == "reference":
        served = reference(checkpoint.model)
    else:
        served = serve(checkpoint.model, backend, PoolBudget(4 << 20, 1, 600), "auto", None)
    cache = KVCache("f", served.pool, 1 << 20, Tombstones())
    return Runner(served, checkpoint.items, cache, 16, "v"), cache


def job_of(events: Events, num_candidates: int, recent: Events | None = None) -> RankJob:
    history = no_history("ann", b"life").extended(events)
    return RankJob(rank_request("ann", ITEMS[:num_candidates].tolist(), recent=recent), Fetched(history), None)


def in_slices(runner: Runner, job: RankJob, seconds: float = SHORTEST) -> tuple[RankResult, int]:
    """Its answer, and how many slices it took."""
    for number in range(1, 10_000):
        [answer] = runner.advance([job], seconds)
        if answer is not None:
            assert isinstance(answer, RankResult)
            return answer, number
    raise AssertionError("it never ends")


@given(st.integers(0, 500), st.integers(1, 70), st.floats(0, 100), st.floats(0.01, 10))
def test_what_fits_is_the_most_that_does(most: int, unit: int, seconds: float, each: float) -> None:
    num = fitting(lambda num: num * each, most, unit, seconds)
    assert num == most or (num % unit == 0 and num < most)
    assert num == 0 or num * each <= seconds
    assert num == most or min(most, num + unit) * each > seconds


@pytest.mark.parametrize("architecture", prefix_rankers())
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_cuts_move_no_score(architecture: str, backend: str) -> None:
    """Nor a key or a value: to the bit where the fused kernel computes, within rounding elsewhere. The heads are
    torch's on so many rows at once, which moves their last bit.
    """
    checkpoint = small_checkpoint(architecture, torch.float32, config=small_config(architecture, max_history=300))
    is_fused = backend == "auto" and choose("auto", torch.device("cpu"), torch.float32).kernel is not None
    events, recent = random_events(250), random_events(40, 1, 10**13)
    with torch.inference_mode():
        whole, cut = runner_of(checkpoint, backend), runner_of(checkpoint, backend)
        for num_recent in (0, 40):
            asked = job_of(events, 333, recent[:num_recent])
            one, slices = in_slices(cut[0], replace(asked))
            other = whole[0].rank(replace(asked))
            assert slices >= 4
            assert np.abs(one.task_scores - other.task_scores).max() <= (1e-6 if is_fused else 2e-5)
            assert one.cache == other.cache and one.unknown.tolist() == other.unknown.tolist()
            assert one.timings.encode_us > 0 and one.timings.score_us > 0
        states = [cache.lookup(asked.fetched_history.history, 0) for _, cache in (whole, cut)]
        kept = [found.state.read(layer) for found in states if found is not None for layer in range(2)]
        assert len(kept) == 4
        for before, after in ((kept[0], kept[2]), (kept[1], kept[3])):
            for a, b in zip(before, after, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0 if is_fused else 2e-5)


def test_a_slice_takes_what_is_predicted_to_fit() -> None:
    runner, _ = runner_of(CHECKPOINT)
    with torch.inference_mode():
        for _ in range(20):  # learn
            runner.rank(job_of(no_events(), 1_000))
        job = job_of(no_events(), 1_200)
        half = runner.forecast(job).seconds / 2
        assert runner.advance([job], half) == [None]
        assert job.progress is not None and 300 < job.progress.num_scored < 800
        assert 0 < job.left_s < 2 * half


def test_what_was_encoded_before_the_caller_gave_up_is_kept() -> None:
    """Else a user whose history takes longer than a deadline would never get an answer."""
    runner, cache = runner_of(CHECKPOINT)
    events = random_events(250)
    with torch.inference_mode():
        job = job_of(events, 9)
        assert [runner.advance([job], SHORTEST) for _ in range(2)] == [[None], [None]]
        runner.let_go(job)
        assert job.progress is None
        again = job_of(events, 9)
        result, _ = in_slices(runner, again)
        assert result.cache.source is CacheSource.HOST
        assert result.cache.reused_tokens == 128 and result.cache.encoded_tokens == 122
        longer = job_of(events, 1_000)
        assert runner.advance([longer], SHORTEST) == [None]
        runner.let_go(longer)
        found = cache.lookup(again.fetched_history.history, 0)
        assert found is not None and found.stop == 250, "the longer state stays"


def test_another_runner_begins_again() -> None:
    """A job that waits half-way when the model is exchanged is answered by the new one alone."""
    old, new = (
        runner_of(CHECKPOINT)[0],
        runner_of(small_checkpoint(dtype=torch.float32, seed=1, config=CHECKPOINT.model.config))[0],
    )
    with torch.inference_mode():
        job = job_of(random_events(250), 99)
        for _ in range(5):
            assert old.advance([job], SHORTEST) == [None]
        result, _ = in_slices(new, job)
        expected = new.rank(job_of(random_events(250), 99))
    assert np.array_equal(result.task_scores, expected.task_scores)


class Steps:
    """Holds the device thread before each step but those that are let through, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.users: list[str] = []
        self.jobs: Sequence[RankJob] = ()
        self.on_step: Callable[[int], None] = lambda _: None
        right = Runner.advance

        def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
            self.jobs = jobs
            self.users += [job.request.user_id for job in jobs]
            self.on_step(len(self.users))
            return right(runner, jobs, min(seconds, SHORTEST))

        monkeypatch.setattr(Runner, "advance", advance)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


CONFIG = EngineConfig(threads=1, slice_s=SHORTEST, ranker=RankerOptions(microbatch=16))


async def test_a_small_request_passes_a_large_one(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, replace(CONFIG, slice_s=0.05))
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    reached, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 3:
            reached.set()
            assert go_on.wait(LIMIT_S)

    steps.on_step = hold
    queued, submit = asyncio.Event(), Scheduler.submit

    def note(scheduler: Scheduler, job: RankJob) -> None:
        submit(scheduler, job)
        if job.request.user_id == "small":
            queued.set()

    monkeypatch.setattr(Scheduler, "submit", note)
    history = random_events(250)
    await engine.append_events("large", Append(history))
    engine.catalog.default.predictor.score.observe(250, 1_000, 100.0)
    asked = rank_request("large", ITEMS[:1_000].tolist())
    large = asyncio.create_task(engine.rank(asked, None))
    assert await asyncio.to_thread(reached.wait, LIMIT_S)
    small = asyncio.create_task(engine.rank(rank_request("small", [1]), None))
    async with asyncio.timeout(LIMIT_S):
        await queued.wait()
    go_on.set()
    ended: list[str] = []  # in turn, and not who has not ended yet: this loop may come late to both answers
    small.add_done_callback(lambda _: ended.append("small"))
    large.add_done_callback(lambda _: ended.append("large"))
    assert len((await small).scores) == 1
    result = await large
    await asyncio.sleep(0)  # it may have ended before it was awaited: whoever hears of that is told in the next turn
    assert ended == ["small", "large"]
    assert steps.users[:4] == ["large"] * 3 + ["small"]
    assert np.abs(result.task_scores - cold_scores(CHECKPOINT, history, asked).numpy()).max() <= 2e-5
    await engine.close()


async def test_requests_side_by_side_are_done_in_slices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one core each is quicker for large requests as well, they still let others go first."""
    monkeypatch.setattr(mfalcon.engine.ranker, "measure_side_by_side", lambda *_: 10**6)
    engine = compose(CHECKPOINT, replace(CONFIG, threads=2, slice_s=0.01))
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    seconds: list[float] = []
    right = Runner.advance

    def advance(runner: Runner, jobs: Sequence[RankJob], most_s: float) -> list[Answer | None]:
        seconds.append(most_s)
        return right(runner, jobs, most_s)

    monkeypatch.setattr(Runner, "advance", advance)
    works = (engine.rank(rank_request(user, ITEMS[:1_000].tolist()), None) for user in ("ann", "bob", "cleo", "dan"))
    for result in await asyncio.gather(*works):
        assert len(result.scores) == 1_000
    assert len(seconds) >= 4 and max(seconds) <= 0.01 * 16  # at the slowest that a neighbour may make it
    await engine.close()


async def test_who_leaves_half_way_holds_nothing(steps: Steps) -> None:
    engine = compose(CHECKPOINT, CONFIG)
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    accounts = engine.catalog.default.prefix.pool.accounts
    await engine.append_events("ann", Append(random_events(250)))
    work = asyncio.create_task(engine.rank(rank_request("ann", ITEMS[:1_000].tolist()), None))
    async with asyncio.timeout(LIMIT_S):
        while len(steps.users) < 3:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait([work])
    await engine.rank(rank_request("bob", [1]), None)
    taken = len(steps.users)
    assert engine.device.num_queued() == 0
    await engine.rank(rank_request("bob", [1]), None)
    assert steps.users[taken:] == ["bob"]
    await engine.delete_user("ann")
    assert accounts.num_free == accounts.num_pages
    await engine.close()


async def test_who_is_late_half_way_is_told_and_costs_no_more(steps: Steps) -> None:
    engine = compose(CHECKPOINT, CONFIG)
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    await engine.append_events("ann", Append(random_events(250)))

    def pass_the_deadline(number: int) -> None:
        if number == 3:
            steps.jobs[0].deadline = time.monotonic() - 1

    steps.on_step = pass_the_deadline
    with pytest.raises(DeadlineExceeded, match="while the request was"):
        await engine.rank(rank_request("ann", ITEMS[:1_000].tolist()), time.monotonic() + LIMIT_S)
    taken = len(steps.users)
    result = await engine.rank(rank_request("ann", [1]), None)
    assert result.cache.reused_tokens >= 64
    assert taken <= 4
    await engine.close()


async def test_who_waits_gives_up_pages_that_another_one_needs(steps: Steps) -> None:
    """And is right all the same, with what it finds or makes again."""
    checkpoint, users = CHECKPOINT, ("ann", "bob", "cleo", "dan")
    engine = compose(checkpoint, replace(CONFIG, ranker=RankerOptions(microbatch=16, kv_budget_bytes=0)))
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    pool = engine.catalog.default.prefix.pool
    for user in users:
        await engine.append_events(user, Append(random_events(250, seed=len(user))))
    kept = pool.accounts.num_pages - 4  # a window is of three pages
    held = pool.empty().extend(torch.zeros(kept * pool.layout.page_tokens, dtype=torch.int64))
    asked = [rank_request(user, ITEMS[:300].tolist()) for user in users]
    turns = [
        asyncio.create_task(engine.rank(one, time.monotonic() + LIMIT_S - number)) for number, one in enumerate(asked)
    ]
    for task, one, user in zip(turns, asked, users, strict=True):
        result = await task
        expected = cold_scores(checkpoint, random_events(250, seed=len(user)), one).numpy()
        assert np.abs(result.task_scores - expected).max() <= 2e-5
    del held
    await engine.close()

"""Answers for the first candidates: what they hold, when they are given, and that nobody gets one unasked."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfalcon.backends.select import PoolBudget, serve
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.job import Forecast, RankJob
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.runner import Answer, Runner
from mfalcon.engine.workers import take_cores
from mfalcon.errors import DeadlineExceeded
from mfalcon.history.history import no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.types import Append, RankRequest, RankResult
from tests.slow_device import LEAST_S, LONGER_AND_LONGER_S, SlowDevice
from tests.small import random_events, rank_request, small_checkpoint, small_config

CHECKPOINT = small_checkpoint(dtype=torch.float32, config=small_config(max_history=300, window_chunk=64))
ITEMS = np.append(np.tile(CHECKPOINT.items.item_id, 20), 5_000_000)[::-1]
EVENTS = random_events(100)
LIMIT_S = 30


@pytest.fixture(autouse=True)
def one_core() -> None:
    take_cores(1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowDevice:
    return SlowDevice(monkeypatch)


def asked(*, allow_partial: bool, top_k: int = 7) -> RankRequest:
    return replace(rank_request("ann", ITEMS.tolist(), top_k=top_k), allow_partial=allow_partial)


def job_of(request: RankRequest, deadline: float | None = None) -> RankJob:
    return RankJob(request, Fetched(no_history("ann", b"life").extended(EVENTS)), deadline)


@pytest.fixture
def runner() -> Runner:
    served = serve(CHECKPOINT.model, "auto", PoolBudget(4 << 20, 1, 600), "auto", None)
    return Runner(served, CHECKPOINT.items, KVCache("f", served.pool, 1 << 20, Tombstones()), 16, "v")


def is_prefix(part: RankResult, whole: RankResult) -> bool:
    """Whether a part is what the whole says of its candidates; the heads round by how many there are at once."""
    num = part.num_scored
    assert part.task_scores.shape == (len(part.tasks), num)
    assert part.unknown.tolist() == [position for position in whole.unknown if position < num]
    assert part.top.tolist() == np.argsort(-part.scores, kind="stable")[: len(whole.top)].tolist()
    gaps = np.abs(part.scores - whole.scores[:num]), np.abs(part.task_scores - whole.task_scores[:, :num])
    return all(gap.max() <= 1e-6 for gap in gaps)


def test_after_each_slice_there_is_an_answer_for_what_is_scored(runner: Runner) -> None:
    with torch.inference_mode():
        whole = runner.rank(job_of(asked(allow_partial=False)))
        job, seen = job_of(asked(allow_partial=True)), list[int]()
        while runner.advance([job], LEAST_S) == [None]:
            if job.so_far is not None:
                assert is_prefix(job.so_far, whole)
                seen.append(job.so_far.num_scored)
    assert len(seen) > 3 and seen == sorted(set(seen)) and seen[-1] < len(ITEMS)
    assert whole.num_scored == len(ITEMS)


def test_fewer_are_scored_than_are_to_be_sorted(runner: Runner) -> None:
    job = job_of(asked(allow_partial=True, top_k=500))
    with torch.inference_mode():
        while job.so_far is None:
            assert runner.advance([job], LEAST_S) == [None]
    assert sorted(job.so_far.top.tolist()) == list(range(job.so_far.num_scored))


def test_the_device_answers_what_has_no_time_for_another_slice(runner: Runner) -> None:
    now = time.monotonic()
    job = job_of(asked(allow_partial=True), now + 1_000)
    job.accepted = now - 10**6  # the reply has 50,000 s
    assert job.cut_at < now < job.due
    answer = None
    with torch.inference_mode():
        while answer is None:
            [answer] = runner.advance([job], LEAST_S)
    assert isinstance(answer, RankResult) and 0 < answer.num_scored < len(ITEMS) / 3


def test_who_wants_all_gets_no_part(runner: Runner) -> None:
    job = job_of(asked(allow_partial=False), time.monotonic() + LIMIT_S)
    with torch.inference_mode():
        while runner.advance([job], LEAST_S) == [None]:
            assert job.so_far is None
    assert job.cut_at == np.inf == job_of(asked(allow_partial=True)).cut_at


async def engine_of() -> Engine:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    await engine.append_events("ann", Append(EVENTS))
    return engine


async def test_a_device_that_does_not_come_back_is_not_waited_for(slow: SlowDevice) -> None:
    engine = await engine_of()
    accounts = engine.catalog.default.prefix.pool.accounts
    whole = await engine.rank(asked(allow_partial=True), time.monotonic() + LIMIT_S)
    assert whole.num_scored == len(ITEMS)
    slow.stops_at = 128
    part = None
    for seconds in LONGER_AND_LONGER_S:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                part = await engine.rank(asked(allow_partial=True), time.monotonic() + seconds)
                break
    assert part is not None
    assert 0 < part.num_scored < len(ITEMS) and is_prefix(part, whole)
    with pytest.raises((TimeoutError, DeadlineExceeded)):
        async with asyncio.timeout(1):
            await engine.rank(asked(allow_partial=False), time.monotonic() + 1)
    slow.stops_at = None
    await engine.rank(rank_request("bob", [1]), None)
    await engine.delete_user("ann")
    await engine.delete_user("bob")
    assert accounts.num_free == accounts.num_pages
    assert engine.metrics.registry.get_sample_value("mfalcon_partial_total", {"model": "small"}) == 1
    await engine.close()


async def test_what_was_not_done_does_not_count_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the device would seem to be many times as fast as it is whenever a large request ends early."""
    engine = await engine_of()

    def advance(_: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        for job in jobs:
            job.left_s -= 0.001
        time.sleep(0.001)
        return [DeadlineExceeded("late") for _ in jobs]

    monkeypatch.setattr(Runner, "advance", advance)
    monkeypatch.setattr(Runner, "forecast", lambda *_: Forecast(seconds=100.0))
    with pytest.raises(DeadlineExceeded, match="late"):
        await engine.rank(asked(allow_partial=False), None)
    await engine.close()
    assert (engine.metrics.registry.get_sample_value("mfalcon_cost_ratio_sum", {"model": "small"}) or 0.0) >= 0.3


async def test_without_a_score_there_is_no_part(slow: SlowDevice) -> None:
    engine = await engine_of()
    slow.stops_at = 0
    with pytest.raises((TimeoutError, DeadlineExceeded)):
        async with asyncio.timeout(1.1):
            await engine.rank(asked(allow_partial=True), time.monotonic() + 1)
    slow.stops_at = None
    with pytest.raises(DeadlineExceeded):
        await engine.rank(asked(allow_partial=True), time.monotonic() - 1)
    await engine.close()

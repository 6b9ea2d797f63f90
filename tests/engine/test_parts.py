"""Scores that are told as they come: once each, in order, those of the answer, and of one model alone."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfalcon.backends.select import PoolBudget, serve
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.job import RankJob
from mfalcon.engine.parts import Parts
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.runner import Runner
from mfalcon.engine.workers import take_cores
from mfalcon.errors import Superseded
from mfalcon.history.history import no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.types import Append, RankPart, RankResult
from tests.slow_device import LEAST_S
from tests.small import random_events, rank_request, small_checkpoint, small_config

CHECKPOINT = small_checkpoint(dtype=torch.float32, config=small_config(max_history=300, window_chunk=64))
ITEMS = np.append(np.tile(CHECKPOINT.items.item_id, 20), 5_000_000)[::-1]
EVENTS = random_events(100)
LIMIT_S = 60


@pytest.fixture(autouse=True)
def one_core() -> None:
    take_cores(1)


def new_runner(version: str = "v") -> Runner:
    served = serve(CHECKPOINT.model, "auto", PoolBudget(4 << 20, 1, 600), "auto", None)
    return Runner(served, CHECKPOINT.items, KVCache("f", served.pool, 1 << 20, Tombstones()), 16, version)


def streamed(told: list[RankPart]) -> RankJob:
    request = rank_request("ann", ITEMS.tolist(), top_k=7)
    job = RankJob(request, Fetched(no_history("ann", b"life").extended(EVENTS)), None)
    job.parts = Parts(told.append)
    return job


def check(told: list[RankPart], answer: RankResult) -> int:
    """How many scores were told, all of which are the answer's."""
    num = 0
    for part in told:
        stop = num + len(part.scores)
        assert part.first == num < stop
        np.testing.assert_array_equal(part.scores, answer.scores[num:stop])
        np.testing.assert_array_equal(part.task_scores, answer.task_scores[:, num:stop])
        assert part.unknown.tolist() == [each for each in answer.unknown if num <= each < stop]
        assert (part.model_version, part.tasks) == (answer.model_version, answer.tasks)
        num = stop
    return num


def finish(runner: Runner, job: RankJob) -> RankResult:
    answer = None
    while answer is None:
        [answer] = runner.advance([job], LEAST_S)
    assert isinstance(answer, RankResult)
    return answer


def test_each_slice_but_the_last_is_told() -> None:
    told = list[RankPart]()
    with torch.inference_mode():
        answer = finish(new_runner(), streamed(told))
    assert len(told) > 3
    assert 0 < len(ITEMS) - check(told, answer) <= len(told[0].scores)
    assert len(told[0].unknown) == 1


def test_who_gave_up_his_pages_is_told_nothing_twice() -> None:
    runner, told = new_runner(), list[RankPart]()
    job = streamed(told)
    with torch.inference_mode():
        while len(told) < 3:
            runner.advance([job], LEAST_S)
        runner.let_go(job)
        before = len(told)
        answer = finish(runner, job)
    assert len(told) > before
    assert check(told, replace_told(answer, told[:before])) < len(ITEMS)


def replace_told(answer: RankResult, told: list[RankPart]) -> RankResult:
    """The answer with what was told before it was done again, from which it may differ by the rounding of slices."""
    scores, by_task = answer.scores.copy(), answer.task_scores.copy()
    for part in told:
        at = slice(part.first, part.first + len(part.scores))
        np.testing.assert_allclose(scores[at], part.scores, atol=1e-6)  # heads round by how many there are at once
        scores[at], by_task[:, at] = part.scores, part.task_scores
    return replace(answer, scores=scores, task_scores=by_task)


def test_what_is_told_is_in_an_answer_that_is_cut_short() -> None:
    told = list[RankPart]()
    job = streamed(told)
    job.request = replace(job.request, allow_partial=True)
    seen = list[int]()

    def tell(part: RankPart) -> None:
        assert job.so_far is not None  # the caller may be given it from here on
        seen.append(job.so_far.num_scored - part.first - len(part.scores))

    job.parts = Parts(tell)
    with torch.inference_mode():
        finish(new_runner(), job)
    assert len(seen) > 3 and set(seen) == {0}


def test_another_model_tells_nothing_behind_what_this_one_told() -> None:
    told = list[RankPart]()
    job = streamed(told)
    with torch.inference_mode():
        runner = new_runner()
        while not told:
            runner.advance([job], LEAST_S)
        with pytest.raises(Superseded, match=f"after {len(told[0].scores)} scores were told; ask again"):
            new_runner("w").advance([job], LEAST_S)
        fresh = streamed(told := [])
        check(told, finish(new_runner("w"), fresh))


def test_from_a_score_that_is_no_number_on_nothing_is_told() -> None:
    """It may be the state's fault: that is deleted, and what was told by it cannot be taken back."""
    runner, told = new_runner(), list[RankPart]()
    job = streamed(told)
    with torch.inference_mode():
        finish(runner, streamed([]))  # now there is a state
        while len(told) < 2:
            runner.advance([job], LEAST_S)
        assert job.progress is not None
        job.progress.scores[-1][-1] = np.nan
        answer = None
        while answer is None:
            [answer] = runner.advance([job], LEAST_S)
        assert isinstance(answer, Superseded) and "spoilt, and deleted, after" in str(answer)
        assert np.isfinite(finish(runner, streamed([])).scores).all()


async def test_they_come_on_the_event_loop_before_the_answer() -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16), slice_s=1e-6))
    await asyncio.to_thread(engine.wait_ready, LIMIT_S)
    await engine.append_events("ann", Append(EVENTS))
    told = list[RankPart]()
    request = rank_request("ann", ITEMS.tolist(), top_k=7)
    answer = await engine.rank(request, time.monotonic() + LIMIT_S, tell=told.append)
    assert 0 < check(told, answer) < len(ITEMS)
    await engine.close()

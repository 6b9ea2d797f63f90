"""Users computed together on a device whose pool is small: states go down to the host and come up again, and every
answer is its own.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from kernels.paged import to_device
from mfalcon.algorithm import append_all, score_all
from mfalcon.backends.select import KV_DTYPES
from mfalcon.engine.clock import HostClock
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.job import RankJob
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.runner import Answer, Runner
from mfalcon.errors import EngineFailure, Overloaded, ShuttingDown
from mfalcon.kvcache.finite import finiteness
from mfalcon.kvcache.state import PlainLayout
from mfalcon.types import Append, CacheSource, Events, RankRequest, RankResult
from tests.device import needs_interpreter
from tests.engine.conftest import compute_on_triton
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

pytestmark = needs_interpreter

BOUND = 2e-6  # answers are float32, ratings up to 10: half a unit in the last place is 5e-7
CHECKPOINT = small_checkpoint()
ITEMS = CHECKPOINT.items.item_id
ANSWER_SECONDS = 60


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_on_triton(monkeypatch)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the computations of several users."""
    sizes: list[int] = []
    right = Runner.advance

    def counted(self: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        sizes.append(len(jobs))
        return right(self, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", counted)
    return sizes


def request(number: int, recent: Events | None = None) -> RankRequest:
    return rank_request(f"user-{number}", ITEMS[: 1 + 3 * number].tolist(), recent=recent)


def assert_right(result: RankResult, history: Events, asked: RankRequest) -> None:
    expected = cold_scores(CHECKPOINT, history, asked).numpy()
    assert np.abs(result.task_scores - expected).max() <= BOUND


async def ask(engine: Engine, histories: Sequence[Events]) -> list[RankResult]:
    asked = [request(number) for number in range(len(histories))]
    results = await asyncio.gather(*(engine.rank(one, None) for one in asked))
    for result, history, one in zip(results, histories, asked, strict=True):
        assert_right(result, history, one)
    return results


async def test_users_of_a_batch_do_not_meet(batches: list[int]) -> None:
    """Cold, cached, appended to, and with recent events; of every length, none among them."""
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)
    histories = [random_events(length, seed=length) for length in (20, 0, 1, 24, 9)]
    for number, history in enumerate(histories):
        if len(history):
            await engine.append_events(f"user-{number}", Append(history, 0))
    first = await ask(engine, histories)
    assert max(batches) > 1
    assert [result.cache.encoded_tokens for result in first] == [20, 0, 1, 24, 9]
    again = await ask(engine, histories)
    assert [result.cache.source.name for result in again] == ["GPU", "NONE", "GPU", "GPU", "GPU"]
    for one, other in zip(first, again, strict=True):
        assert np.abs(one.task_scores - other.task_scores).max() <= BOUND
    recent = random_events(2, 1, int(histories[0]["time_ms"][-1]))
    asked = [request(0, recent), *(request(number) for number in range(1, 5))]
    results = await asyncio.gather(*(engine.rank(each, None) for each in asked))
    for result, history, each in zip(results, histories, asked, strict=True):
        assert_right(result, history, each)
    await engine.close()


async def test_a_batch_is_of_all_that_wait_and_one_history_is_encoded_once(
    batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their order: several of one user ("anonymous"), and a prefill before a rank."""
    engine = compose(CHECKPOINT, EngineConfig(threads=1, slice_s=1e3, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)
    reached, go_on, right = threading.Event(), threading.Event(), Runner.advance

    def held(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        reached.set()
        assert go_on.wait(ANSWER_SECONDS)
        return right(runner, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", held)
    history = random_events(20)
    for number in range(3):
        await engine.append_events(f"user-{number}", Append(history, 0))
    asked = [request(number) for number in (0, 1, 0, 2, 0)]
    first = asyncio.create_task(engine.rank(request(9), None))
    assert await asyncio.to_thread(reached.wait, ANSWER_SECONDS)
    prefilling = asyncio.create_task(engine.prefill("user-2", None))
    ranking = [asyncio.create_task(engine.rank(one, None)) for one in asked]
    async with asyncio.timeout(ANSWER_SECONDS):
        while engine.device.num_queued() < 6:  # noqa: ASYNC110 (nobody is told)
            await asyncio.sleep(0.001)
    go_on.set()
    await first
    prefilled, results = await prefilling, await asyncio.gather(*ranking)
    assert batches == [1, 6]
    for result, one in zip(results, asked, strict=True):
        assert_right(result, history, one)
    encoded = [prefilled.encoded_tokens, *(result.cache.encoded_tokens for result in results)]
    assert sorted(encoded) == [0, 0, 0, 20, 20, 20]
    await engine.close()


async def test_a_batch_is_waited_for_once_its_scores_are_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the encoding is asked for before: neither what it took nor whether it is made of numbers."""
    log: list[str] = []

    def noted(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any) -> Any:
            log.append(name)
            return what(*args)

        return note

    def checked(*args: Any) -> Callable[..., Any]:
        return noted("wait", finiteness(*args))

    monkeypatch.setattr("mfalcon.engine.encoding.append_all", noted("encode", append_all))
    monkeypatch.setattr("mfalcon.engine.runner.score_all", noted("score", score_all))
    monkeypatch.setattr("mfalcon.engine.encoding.finiteness", checked)
    monkeypatch.setattr(HostClock, "seconds", noted("wait", HostClock.seconds))
    events = random_events(11, seed=1)
    history, recent = events[:9], events[9:]
    engine = compose(CHECKPOINT, EngineConfig(threads=1, slice_s=1e3, ranker=RankerOptions(microbatch=32)))
    await engine.append_events("user-1", Append(history, 0))
    await engine.rank(request(1), None)
    log.clear()
    assert_right(await engine.rank(request(1, recent), None), events, request(1))
    assert log == ["encode", "score", "wait", "wait"]
    assert (await engine.rank(request(1), None)).cache.source is CacheSource.GPU
    await engine.close()


async def test_one_that_fails_costs_the_others_of_its_batch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)

    def refuse(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
        if len(numbers) == 1 + 3 * 2:
            raise RuntimeError("CUDA error: an illegal memory access")
        return to_device(numbers, device)

    monkeypatch.setattr("mfalcon.engine.runner.to_device", refuse)
    answers = await asyncio.gather(*(engine.rank(request(i), None) for i in range(4)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [RankResult, RankResult, EngineFailure, RankResult]
    await engine.close()


async def test_a_batch_that_is_too_much_for_the_memory_is_split_and_the_bound_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)
    sizes: list[int] = []
    right = Runner.advance

    def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return right(runner, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", advance)
    for _ in range(2):
        for answer in await asyncio.gather(*(engine.rank(request(number), None) for number in range(8))):
            assert isinstance(answer, RankResult)
    largest = max(sizes)
    assert largest > 2 and sizes.count(largest) == 1
    assert max(sizes[sizes.index(largest) + 1 :]) <= largest // 2
    await engine.close()


async def test_a_batch_that_finds_no_pages_is_split_and_the_next_one_is_as_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pages come back, memory that a step never had does not."""
    engine = compose(CHECKPOINT, EngineConfig(threads=1, slice_s=1e3, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)
    sizes: list[int] = []
    right = Runner.advance

    def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        sizes.append(len(jobs))
        if len(jobs) > 2 and len(sizes) < 4:
            raise Overloaded("the memory for KV states is in use")
        return right(runner, jobs, seconds)

    monkeypatch.setattr(Runner, "advance", advance)
    for _ in range(2):
        for answer in await asyncio.gather(*(engine.rank(request(number), None) for number in range(8))):
            assert isinstance(answer, RankResult)
    refused = max(sizes[:3])
    assert refused > 2
    assert max(sizes[sizes.index(refused) + 1 :]) > refused // 2
    await engine.close()


async def test_a_device_that_is_lost_answers_everybody_and_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error in a kernel CUDA refuses everything: a balancer must send the users elsewhere."""
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=32)))
    engine.wait_ready(ANSWER_SECONDS)

    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr("mfalcon.engine.runner.to_device", lost)
    monkeypatch.setattr(Runner, "check_device", lost)
    works = [engine.rank(request(number), None) for number in range(4)]
    answers = await asyncio.wait_for(asyncio.gather(*works, return_exceptions=True), ANSWER_SECONDS)
    assert all(isinstance(answer, EngineFailure | ShuttingDown) for answer in answers)
    assert not engine.ready
    await engine.close()


@pytest.mark.parametrize(
    "kv_dtype",
    [
        pytest.param(dtype, marks=() if dtype in ("auto", "fp8-products") else pytest.mark.thorough)
        for dtype in KV_DTYPES
    ],
)
async def test_a_small_pool_sends_states_down_and_brings_them_back(kv_dtype: str) -> None:
    """Ten users of two pages each, one after the other, twice, on a device that keeps four or five of them. `make
    thorough` adds int8, and fp8 whose codes are multiplied as numbers.
    """
    checkpoint = small_checkpoint(config=small_config(max_history=200, window_chunk=64, num_layers=1))
    page_bytes = PlainLayout(checkpoint.prefix_model.kv_shape(), codes=KV_DTYPES[kv_dtype]).page_bytes
    config = EngineConfig(
        threads=1,
        ranker=RankerOptions(
            microbatch=32, kv_budget_bytes=8 << 20, device_budget_bytes=18 * page_bytes, kv_dtype=kv_dtype
        ),
    )
    engine = compose(checkpoint, config)
    engine.wait_ready(ANSWER_SECONDS)
    cache, bound = engine.catalog.default.cache, {"auto": BOUND, "int8": 0.05}.get(kv_dtype, 0.2)
    histories = {f"user-{number}": random_events(150 + number, seed=number) for number in range(10)}
    for user_id, history in histories.items():
        await engine.append_events(user_id, Append(history, 0))
    for source in (CacheSource.NONE, CacheSource.HOST):  # who was asked longest ago is always the next
        for user_id, history in histories.items():
            asked = rank_request(user_id, ITEMS[:5].tolist())
            result = await engine.rank(asked, None)
            assert result.cache.source is source
            assert np.abs(result.task_scores - cold_scores(checkpoint, history, asked).numpy()).max() <= bound
            await asyncio.to_thread(cache.idle)
    for user_id in histories:
        await engine.delete_user(user_id)
    await asyncio.to_thread(cache.idle)
    for pool in (engine.catalog.default.prefix.pool, engine.catalog.default.prefix.host):
        assert pool is not None
        assert pool.accounts.num_free == pool.accounts.num_pages
    await engine.close()

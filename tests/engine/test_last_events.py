"""A model that reads the last events with each request: the same answers, and no state of anybody anywhere."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial

import numpy as np
import pytest
import torch

from mfalcon.backends.choice import choose
from mfalcon.backends.events import SPLIT
from mfalcon.backends.select import serve_any
from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.job import RankJob
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.engine.runner import Runner
from mfalcon.errors import ConfigError, DeadlineExceeded, ShuttingDown
from mfalcon.history.history import no_history
from mfalcon.kvcache.fetch import Fetched
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, CacheInfo, CacheSource, DenseFeatures, RankRequest, RankResult, Rerank
from tests.redis_fixtures import OwnRedis
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

DIN, OTHER, DFGR = small_checkpoint("din"), small_checkpoint("din", seed=7), small_checkpoint("dfgr")
ITEMS = [*DIN.items.item_id.tolist(), 5_000_000, int(DIN.items.item_id[3])]
NOTHING = CacheInfo(CacheSource.NONE, 0, 0)
WAIT_S = 60.0


@contextlib.asynccontextmanager
async def running(
    *models: tuple[str, Checkpoint], redis_url: str = "", threads: int = 1, options: RankerOptions | None = None
) -> AsyncIterator[Engine]:
    redis = RedisOptions(RedisSettings(redis_url, 2.0, 2.0), prefix="e") if redis_url else None
    options = options or RankerOptions(microbatch=7)
    config = EngineConfig(threads=threads, histories=HistoryOptions(redis=redis))
    engine = compose_all([(made, dataclasses.replace(options, name=name)) for name, made in models], config)
    try:
        await asyncio.to_thread(engine.wait_ready, WAIT_S)
        await engine.start()
        yield engine
    finally:
        await engine.close()


def is_right(result: RankResult, checkpoint: Checkpoint, seen: int, request: RankRequest) -> bool:
    """Whether scores are those of the model's definition on the first events of the history."""
    truth = cold_scores(checkpoint, random_events(60)[:seen], request).numpy()
    return np.allclose(result.task_scores, truth[:, : result.num_scored], rtol=1e-6, atol=1e-6)


async def test_every_answer_is_that_of_the_definition_and_nothing_is_cached() -> None:
    events = random_events(60)
    async with running(("din", DIN)) as engine:
        for seen in (0, 1, 23, 24, 25, 60):
            if seen:
                before = (await engine.rank(rank_request("ann", ITEMS), None)).history_len
                await engine.append_events("ann", Append(events[before:seen], before))
            for recent in (events[:0], events[seen : seen + 3]):
                request = rank_request("ann", ITEMS, recent=recent, top_k=5)
                result = await engine.rank(request, None)
                assert is_right(result, DIN, seen, request)
                assert (result.cache, result.history_len) == (NOTHING, seen)
                assert result.unknown.tolist() == [len(ITEMS) - 2]
                assert len(result.top) == 5


async def test_a_prefill_has_nothing_to_do_and_says_so() -> None:
    async with running(("din", DIN)) as engine:
        await engine.append_events("ann", Append(random_events(60)[:9], 0))
        assert await engine.prefill("ann", None) == NOTHING
        info = engine.model
        assert (info.reads_last_events, info.prefix_stable, info.max_history) == (True, False, 24)
        assert info.backend == f"cpu float64 {SPLIT}"
    with pytest.raises(ShuttingDown):
        await engine.prefill("ann", None)


async def test_redis_holds_the_log_and_no_state(own_redis: OwnRedis) -> None:
    server = own_redis()
    async with running(("din", DIN), redis_url=server.url) as engine:
        await engine.append_events("ann", Append(random_events(60)[:24], 0))
        request = rank_request("ann", ITEMS)
        assert is_right(await engine.rank(request, None), DIN, 24, request)
        assert engine.catalog.default.remote is None
        await engine.hand_over(1.0, 1 << 20)
        keys = server.command("KEYS", "*")
        assert isinstance(keys, list)
        names = [key for key in keys if isinstance(key, bytes)]
        assert any(b":log" in name for name in names)
        assert not any(b":kv:" in name for name in names)
        await engine.delete_user("ann")
        assert is_right(await engine.rank(request, None), DIN, 0, request)
    shown = {sample.name for metric in engine.metrics.registry.collect() for sample in metric.samples}
    assert "mfalcon_backend" in shown
    assert not shown & {"mfalcon_pool_pages", "mfalcon_state_lookups_total", "mfalcon_host_bytes"}


@pytest.mark.parametrize("threads", [1, 2])
async def test_two_kinds_of_models_answer_side_by_side(threads: int) -> None:
    """Each as if it were alone, from one log, whatever is asked of the other meanwhile."""
    models = {"dfgr": DFGR, "din": DIN}
    async with running(*models.items(), threads=threads) as engine:
        for user in range(6):
            await engine.append_events(f"user-{user}", Append(random_events(60)[: 4 * user], 0))

        async def one(user: int, model: str) -> bool:
            request = rank_request(f"user-{user}", ITEMS)
            return is_right(await engine.rank(request, None, model), models[model], 4 * user, request)

        assert all(await asyncio.gather(*(one(user, model) for _ in range(5) for user in range(6) for model in models)))


async def test_a_reload_exchanges_one_kind_for_the_other() -> None:
    async with running(("main", DFGR)) as engine:
        await engine.append_events("ann", Append(random_events(60)[:12], 0))
        request = rank_request("ann", ITEMS)
        for made in (DFGR, DIN, OTHER, DFGR):
            info = await engine.reload("main", partial(dataclasses.replace, made))
            result = await engine.rank(request, None)
            assert is_right(result, made, 12, request)
            assert info.reads_last_events == (made is not DFGR)
            assert (result.cache == NOTHING) == info.reads_last_events


async def test_a_top_is_made_diverse_by_the_vectors_of_its_items() -> None:
    async with running(("din", DIN)) as engine:
        request = dataclasses.replace(rank_request("ann", ITEMS, top_k=6), rerank=Rerank("mmr", 0.9))
        result = await engine.rank(request, None)
        assert not result.rerank_skipped
        assert sorted(set(result.top.tolist())) == sorted(result.top.tolist())


async def test_a_deadline_that_passed_is_an_error_and_spoils_nobody() -> None:
    async with running(("din", DIN)) as engine:
        request = rank_request("ann", ITEMS)
        late, good = await asyncio.gather(
            engine.rank(request, time.monotonic() - 1), engine.rank(request, None), return_exceptions=True
        )
        assert isinstance(late, DeadlineExceeded)
        assert isinstance(good, RankResult) and is_right(good, DIN, 0, request)


def runner_of(backend: str = "auto", microbatch: int = 5) -> Runner:
    return Runner(serve_any(DIN.model, backend), DIN.items, None, microbatch, "v")


def job_of(request: RankRequest, seen: int) -> RankJob:
    return RankJob(request, Fetched(no_history("ann", b"life").extended(random_events(60)[:seen])), None)


def test_a_large_request_is_done_in_slices_and_may_be_partial() -> None:
    runner, many = runner_of(), ITEMS * 40
    with torch.inference_mode():
        whole = runner.rank(job_of(rank_request("ann", many), 30))
        job, answers = job_of(rank_request("ann", many), 30), 0
        while (answer := runner.advance([job], 1e-9)[0]) is None:
            answers += 1
        assert answers >= 3
        assert isinstance(answer, RankResult) and np.allclose(answer.task_scores, whole.task_scores, rtol=0, atol=1e-12)
        cut = job_of(dataclasses.replace(rank_request("ann", many), allow_partial=True), 30)
        cut.deadline = time.monotonic() + 60
        assert runner.advance([cut], 1e-9) == [None]
        assert cut.so_far is not None and 0 < cut.so_far.num_scored < len(many)
        runner.let_go(cut)


def test_what_a_job_costs_is_foreseen_by_its_size_alone() -> None:
    runner = runner_of()
    few, many = (runner.forecast(job_of(rank_request("ann", ITEMS * n), 60)) for n in (1, 50))
    assert 0 < few.seconds < many.seconds
    assert few.least_s <= few.seconds
    assert many.least_s < many.seconds


@pytest.mark.parametrize("backend", ["auto", "reference", "fused", "triton"])
def test_what_computes_is_said(backend: str) -> None:
    """In float64 there is no kernel: a fused one by name is an error, as for a stack."""
    if backend == "fused":
        with pytest.raises(ConfigError, match=r"no compiled kernel computes in torch\.float64"):
            serve_any(DIN.model, backend)
    else:
        name = serve_any(DIN.model, backend, kv_dtype="int8").name
        assert name == ("reference" if backend == "reference" else SPLIT)


def test_in_float32_the_fused_kernel_multiplies() -> None:
    made = small_checkpoint("din", torch.float32)
    kernel = choose("auto", torch.device("cpu"), torch.float32).name
    assert serve_any(made.model).name == (SPLIT if kernel == "reference" else kernel)


def dense(*rows: Sequence[float]) -> DenseFeatures:
    return DenseFeatures(("price", "rank_before"), np.array(rows, dtype=np.float32).ravel())


@pytest.mark.parametrize("extreme", [3.4e38, -3.4e38, 1e30, 0.0])
def test_the_most_extreme_features_and_values_leave_every_score_finite(extreme: float) -> None:
    made = small_checkpoint("din", torch.float32)
    runner = Runner(serve_any(made.model), made.items, None, 5, "v")
    events = random_events(24)
    events["value"] = extreme
    request = dataclasses.replace(
        rank_request("ann", ITEMS), dense=dense(*[(extreme, -extreme)] * len(ITEMS)), recent_events=events
    )
    with torch.inference_mode():
        result = runner.rank(RankJob(request, Fetched(no_history("ann", b"life")), None))
    assert np.isfinite(result.task_scores).all()
    assert not len(result.failed)


def test_a_score_that_is_no_number_is_the_failure_of_its_candidate_alone() -> None:
    made = small_checkpoint("din", torch.float64, seed=3)
    made.model.items.id.weight[1] = float("nan")  # of the first item
    runner = Runner(serve_any(made.model), made.items, None, 5, "v")
    with torch.inference_mode():
        result = runner.rank(
            RankJob(rank_request("ann", made.items.item_id[:6].tolist()), Fetched(no_history("ann", b"life")), None)
        )
    assert result.failed.tolist() == [0]
    assert np.isfinite(result.task_scores[:, 1:]).all()

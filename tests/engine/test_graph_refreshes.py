"""Graph vectors that are refreshed beside requests: every answer is of exactly the version that it names."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.reload import ReloadOptions
from mfalcon.errors import CheckpointError, InvalidInput
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append, CacheSource, RankResult
from tests.engine.replicas import value
from tests.graph_vectors import DIM, graph_checkpoint, refresh_of, refreshed
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

BOUND = 2e-6  # answers are float32
WAIT_S = 60.0
CHECKPOINT = graph_checkpoint()
ITEMS = CHECKPOINT.items.item_id
CANDIDATES = [*ITEMS[:9].tolist(), 77]
HISTORY = random_events(20)


async def started(checkpoint: Checkpoint) -> Engine:
    options = RankerOptions(name="main", microbatch=16)
    engine = compose(checkpoint, EngineConfig(threads=1, ranker=options, reload=ReloadOptions(8, 0.5)))
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    await engine.start()
    return engine


@pytest.fixture(params=["dfgr", "din"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = await started(graph_checkpoint(request.param))
    yield engine
    await asyncio.wait_for(engine.close(), WAIT_S)


def own(engine: Engine) -> Checkpoint:
    return engine.catalog.default.checkpoint


def assert_right(result: RankResult, checkpoint: Checkpoint, num_events: int) -> None:
    truth = cold_scores(checkpoint, HISTORY[:num_events], rank_request("ann", CANDIDATES)).numpy()
    assert (np.abs(result.task_scores - truth) <= BOUND * np.maximum(1, np.abs(truth))).all()


async def test_every_answer_beside_refreshes_is_one_versions(engine: Engine) -> None:
    checkpoint, done, answered = own(engine), asyncio.Event(), asyncio.Event()
    versions: dict[str, GraphRefresh | None] = {"": None}
    answers = list[tuple[int, RankResult]]()

    async def refresh() -> None:
        for number in range(1, 21):
            given = refresh_of(checkpoint, 3 * number)
            await engine.refresh_graph("main", given)
            versions[engine.model.graph_version] = given
            answered.clear()
            await answered.wait()  # so that ranks come between refreshes on any machine
        done.set()

    async def ask(user: str) -> None:
        length = 0
        while not done.is_set():
            if length < 20:
                await engine.append_events(user, Append(HISTORY[length : length + 2]))
                length += 2
            answers.append((length, await engine.rank(rank_request(user, CANDIDATES), None)))
            answered.set()

    await asyncio.wait_for(asyncio.gather(refresh(), *(ask(user) for user in ("ann", "bob"))), WAIT_S)
    assert len({result.graph_version for _, result in answers}) > 3
    for length, result in answers:
        vectors = versions[result.graph_version]
        assert_right(result, checkpoint if vectors is None else refreshed(checkpoint, vectors), length)
    assert value(engine.metrics, "mfalcon_graph_refreshes_total", model="main", result="applied") == 20
    assert value(engine.metrics, "mfalcon_graph_number", model="main") == 60
    assert value(engine.metrics, "mfalcon_graph_refresh_seconds_count", model="main") == 20


async def test_a_refresh_voids_no_state(engine: Engine) -> None:
    await engine.append_events("ann", Append(HISTORY))
    before = await engine.rank(rank_request("ann", CANDIDATES), None)
    await engine.refresh_graph("main", refresh_of(own(engine), 1))
    after = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert not np.array_equal(after.scores, before.scores)
    if own(engine).model.encodes_prefix:
        assert after.cache.source is not CacheSource.NONE and after.cache.encoded_tokens == 0


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "foreign": ({"checkpoint": "f" * 64}, CheckpointError, "checkpoint: got vectors of"),
    "short": ({"checkpoint": "3"}, CheckpointError, "at least its first 12 characters"),
    "older": ({"number": 1}, CheckpointError, "number: got 1, must be more than 1"),
    "zero": ({"number": 0}, InvalidInput, "number: got 0"),
    "huge": ({"number": 2**53 + 1}, InvalidInput, "number"),
    "narrow": ({"vector": np.zeros((9, DIM - 1), np.float32)}, InvalidInput, "vector: got 'float32"),
    "wide": ({"vector": np.zeros((9, DIM), np.float64)}, InvalidInput, "vector: got 'float64"),
    "nan": ({"vector": np.full((9, DIM), np.nan, np.float32)}, InvalidInput, "no finite number in row 0"),
    "large": ({"vector": np.full((9, DIM), 1e9, np.float32)}, InvalidInput, "at most 10000 in magnitude"),
    "twice": ({"item_id": np.zeros(9, np.int64)}, InvalidInput, "0 more than once"),
    "text": ({"item_id": np.zeros(9, np.float32)}, InvalidInput, "int64 of one dimension"),
    "empty": ({"item_id": ITEMS[:0], "vector": np.zeros((0, DIM), np.float32)}, InvalidInput, "no items"),
}


async def test_bad_vectors_are_counted_and_change_nothing(engine: Engine) -> None:
    checkpoint = own(engine)
    good = GraphRefresh(1, checkpoint.fingerprint, ITEMS[:9], np.ones((9, DIM), np.float32))
    await engine.refresh_graph("main", good)
    before = await engine.rank(rank_request("ann", CANDIDATES), None)
    for changes, kind, match in BAD.values():
        with pytest.raises(kind, match=match):
            await engine.refresh_graph("main", dataclasses.replace(good, **{"number": 2} | changes))
    after = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert np.array_equal(after.scores, before.scores) and after.graph_version == before.graph_version
    assert engine.model.graph_version == after.graph_version
    counted = [
        value(engine.metrics, "mfalcon_graph_refreshes_total", model="main", result=result)
        for result in ("applied", "foreign", "malformed")
    ]
    assert counted == [1, 3, 9]


async def test_a_reload_of_the_same_checkpoint_keeps_the_vectors(engine: Engine) -> None:
    checkpoint, given = own(engine), refresh_of(own(engine), 4)
    await engine.refresh_graph("main", given)
    name = engine.model.graph_version
    info = await engine.reload("main", lambda: graph_checkpoint(checkpoint.model.config.architecture))
    result = await engine.rank(rank_request("ann", CANDIDATES), None)
    assert info.graph_version == result.graph_version == name
    assert_right(result, refreshed(checkpoint, given), 0)
    other = graph_checkpoint(checkpoint.model.config.architecture, seed=2)
    assert (await engine.reload("main", lambda: other)).graph_version == ""
    assert_right(await engine.rank(rank_request("ann", CANDIDATES), None), other, 0)


async def test_a_model_without_a_graph_has_no_vectors() -> None:
    engine = await started(dataclasses.replace(small_checkpoint(), fingerprint="3" * 64))
    with pytest.raises(InvalidInput, match="one that was trained with --graph"):
        await engine.refresh_graph("main", refresh_of(CHECKPOINT, 1))
    assert (await engine.rank(rank_request("ann", CANDIDATES), None)).graph_version == ""
    await engine.close()

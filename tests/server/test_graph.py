"""Graph vectors from a watched directory, over both transports and behind front-ends, on a server with an engine."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.graph.vector_file import SUFFIX, write_vectors
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.types import RankResult
from proto import ranking_pb2
from server.frontends.engine_server import EngineServer
from server.frontends.remote import RemoteEngine
from tests.engine.replicas import value
from tests.graph_vectors import DIM, graph_checkpoint, refresh_of, refreshed
from tests.server.harness import Served, serving_engine
from tests.small import cold_scores, random_events, rank_request

CHECKPOINT = graph_checkpoint()
CANDIDATES = [*CHECKPOINT.items.item_id[:9].tolist(), 77]
BOUND = 2e-6  # answers are float32
WAIT_S = 60.0


async def started() -> Engine:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, WAIT_S)
    return engine


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Served[Engine]]:
    engine = await started()
    async with serving_engine(engine, engine.metrics, graph_dir=directory, items_watch_seconds=0.01) as served:
        yield served


def right_scores(refresh: GraphRefresh | None) -> Any:
    table = CHECKPOINT if refresh is None else refreshed(CHECKPOINT, refresh)
    return cold_scores(table, random_events(0), rank_request("ann", CANDIDATES)).numpy()


def assert_near(scores: Any, truth: Any) -> None:
    assert (np.abs(scores - truth) <= BOUND * np.maximum(1, np.abs(truth))).all()


async def assert_serves(served: Served[Engine], refresh: GraphRefresh | None) -> None:
    request = ranking_pb2.RankRequest(
        user_id="ann", candidates=CANDIDATES, request_time_ms=rank_request("ann", []).request_time_ms
    )
    request.context["surface"] = 1
    answer = await served.stub.Rank(request)
    truth = right_scores(refresh)
    assert_near(np.reshape(answer.task_scores, truth.shape), truth)
    body = {"user_id": "ann", "candidates": CANDIDATES, "context": {"surface": 1}}
    told = (await served.http.post("/v1/rank", json=body)).json()
    model = (await served.http.get("/v1/model")).json()
    by_grpc = await served.stub.GetModel(ranking_pb2.GetModelRequest())
    name = "" if refresh is None else f"{refresh.number}-{refresh.digest()}"
    assert name == answer.graph_version == told["graph_version"] == model["graph_version"] == by_grpc.graph_version


async def until(served: Served[Engine], number: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while not served.engine.model.graph_version.startswith(f"{number}-"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_refused(served: Served[Engine], result: str, number: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while value(served.engine.metrics, "mfalcon_graph_refreshes_total", model="small", result=result) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_newest_vectors_of_a_directory_are_served_also_after_a_restart(tmp_path: Path) -> None:
    given = {number: refresh_of(CHECKPOINT, number) for number in (2, 5, 7)}
    async with serving(tmp_path) as served:
        await assert_serves(served, None)
        for number in (2, 7):
            write_vectors(tmp_path, given[number])
            await until(served, number)
            await assert_serves(served, given[number])
    async with serving(tmp_path) as served:
        await assert_serves(served, given[7])
        write_vectors(tmp_path, given[5])  # an older one
        await until_refused(served, "foreign", 1)
        await assert_serves(served, given[7])


async def test_bad_files_are_refused_and_the_newest_good_one_is_served(tmp_path: Path) -> None:
    good, torn, later = (refresh_of(CHECKPOINT, number) for number in (1, 2, 9))
    write_vectors(tmp_path, good)
    columns = tmp_path / json.loads(write_vectors(tmp_path, torn).read_text())["file"]
    whole = columns.read_bytes()
    columns.write_bytes(whole[:-10])
    wide = np.zeros((3, DIM + 1), np.float32)
    write_vectors(tmp_path, GraphRefresh(3, CHECKPOINT.fingerprint, CHECKPOINT.items.item_id[:3], wide))
    spoilt = dataclasses.replace(
        refresh_of(CHECKPOINT, 4), vector=np.full_like(refresh_of(CHECKPOINT, 4).vector, np.nan)
    )
    write_vectors(tmp_path, spoilt)
    (tmp_path / f"junk{SUFFIX}").write_text("{")
    async with serving(tmp_path) as served:
        await assert_serves(served, good)  # all others were tried before the first request
        assert value(served.engine.metrics, "mfalcon_graph_refreshes_total", model="small", result="malformed") == 4
        write_vectors(tmp_path, dataclasses.replace(later, checkpoint="f" * 64))
        await until_refused(served, "foreign", 1)
        await assert_serves(served, good)
        columns.write_bytes(whole)
        await until(served, 2)
        await assert_serves(served, torn)
        write_vectors(tmp_path, later)
        await until(served, 9)
        await assert_serves(served, later)


async def test_behind_front_ends_every_answer_is_one_versions(tmp_path: Path) -> None:
    engine = await started()
    await engine.start()
    server = EngineServer(f"ipc://{tmp_path}/engine")
    remote = RemoteEngine(f"ipc://{tmp_path}/engine", "0.1", lambda status: None)
    remote.say_listening()
    server.serve(engine)
    versions: dict[str, GraphRefresh | None] = {"": None}
    answers, done = list[RankResult](), asyncio.Event()

    async def refresh() -> None:
        for number in range(1, 21):
            given = refresh_of(CHECKPOINT, number)
            versions[f"{number}-{given.digest()}"] = given
            await engine.refresh_graph("", given)
        done.set()

    async def ask() -> None:
        while not done.is_set():
            answers.append(await remote.rank(rank_request("ann", CANDIDATES), None))

    async with asyncio.timeout(WAIT_S):
        while not remote.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.gather(refresh(), ask(), ask())
        answers.append(await remote.rank(rank_request("ann", CANDIDATES), None))
    assert answers[-1].graph_version.startswith("20-")
    for answer in answers:
        assert_near(answer.task_scores, right_scores(versions[answer.graph_version]))
    remote.close()
    await server.close()
    await engine.close()

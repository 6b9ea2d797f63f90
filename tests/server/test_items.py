"""Deltas of item rows over the wire and from a directory, on a server with a real engine."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from safetensors.numpy import save_file

from mfalcon.cli.update_items import update_items
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import CallFailed
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import SUFFIX, write_delta
from mfalcon.items.messages import messages
from proto import ranking_pb2, ranking_pb2_grpc
from server.access.access import Access
from server.grpc.admin import AdminServer
from server.reload import Reloaded
from server.settings.access import AccessSettings
from tests.items.oracle import delta_of, numbered, patched
from tests.server.harness import Served, serving_engine
from tests.small import cold_scores, random_events, rank_request, small_checkpoint

CHECKPOINT = dataclasses.replace(small_checkpoint(), fingerprint="0123456789abcdef" * 4)
VERSION = CHECKPOINT.fingerprint[:12]
ITEMS = CHECKPOINT.items.item_id
NEW = np.array([77, 10**15])
CANDIDATES = [*ITEMS[:9].tolist(), *NEW.tolist()]
BOUND = 2e-6  # answers are float32


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Served[Engine]]:
    engine = compose(CHECKPOINT, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    await asyncio.to_thread(engine.wait_ready, 20)
    async with serving_engine(engine, **settings) as served:
        yield served


async def rank(served: Served[Engine]) -> ranking_pb2.RankResponse:
    request = ranking_pb2.RankRequest(
        user_id="ann", candidates=CANDIDATES, request_time_ms=rank_request("ann", []).request_time_ms
    )
    request.context["surface"] = 1
    answer: ranking_pb2.RankResponse = await served.stub.Rank(request)
    return answer


async def assert_serves(served: Served[Engine], deltas: list[Delta]) -> None:
    answer = await rank(served)
    truth = cold_scores(patched(CHECKPOINT, deltas), random_events(0), rank_request("ann", CANDIDATES)).numpy()
    assert np.abs(np.reshape(answer.task_scores, truth.shape) - truth).max() <= BOUND
    body = {"user_id": "ann", "candidates": [str(one) for one in CANDIDATES], "context": {"surface": 1}}
    told = (await served.http.post("/v1/rank", json=body | {"candidates": CANDIDATES})).json()
    model = (await served.http.get("/v1/model")).json()
    by_grpc = await served.stub.GetModel(ranking_pb2.GetModelRequest())
    assert answer.items_version == told["items_version"] == model["items_version"] == by_grpc.items_version
    assert int(answer.items_version.partition("-")[0] or 0) == (deltas[-1].number if deltas else 0)


@dataclasses.dataclass(frozen=True)
class Admin:
    """A server with its Admin service on a port of its own."""

    served: Served[Engine]
    address: str
    channel: grpc.aio.Channel

    @property
    def stub(self) -> ranking_pb2_grpc.AdminStub:
        return ranking_pb2_grpc.AdminStub(self.channel)


class NoReloads:
    async def reload(self, model: str, checkpoint: str) -> Reloaded:
        raise AssertionError


@pytest.fixture
async def admin() -> AsyncIterator[Admin]:
    async with serving() as served:
        server = AdminServer(NoReloads(), Access(AccessSettings()), None, served.engine.update_items)
        address = await server.start("127.0.0.1", 0)
        async with grpc.aio.insecure_channel(address) as channel:
            yield Admin(served, address, channel)
        await server.stop()


async def test_a_stream_is_one_delta(admin: Admin) -> None:
    first = dataclasses.replace(delta_of(CHECKPOINT, np.concatenate([ITEMS, NEW])), checkpoint=VERSION, number=1)
    parts = list(messages("", first))
    assert len(parts) == 1
    split = [
        Delta(
            1, VERSION, first.item_id[at], first.vector[at], first.bias[at], {n: c[at] for n, c in first.side.items()}
        )
        for at in (slice(0, 5), slice(5, 6), slice(6, None))
        if first.vector is not None and first.bias is not None
    ]
    parts = [part for one in split for part in messages("small", one)]
    for part in parts[:-1]:
        part.last = False
    done = await admin.stub.UpdateItems(iter(parts))
    assert (done.model, done.number, done.num_rows, done.num_items) == ("small", 1, len(ITEMS) + 2, len(ITEMS) + 2)
    await assert_serves(admin.served, [first])
    second = numbered(delta_of(CHECKPOINT, ITEMS[:3], 5, columns="v"), 2)
    await admin.stub.UpdateItems(messages("", second))
    await assert_serves(admin.served, [first, second])


BAD: dict[str, tuple[list[dict[str, Any]], grpc.StatusCode, str]] = {
    "nothing": ([], grpc.StatusCode.INVALID_ARGUMENT, "last: got 'in none of 0 messages'"),
    "no end": (
        [{"item_ids": [1], "last": False}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "last: got 'in none of 1 messages'",
    ),
    "two ends": (
        [{"item_ids": [1], "biases": [0, 0], "last": True}, {"item_ids": [2], "biases": [0, 0]}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "in message 1, which others follow",
    ),
    "no version": ([{"item_ids": [1], "biases": [0, 0]}], grpc.StatusCode.FAILED_PRECONDITION, "got rows of ''"),
    "no model": ([{"model": "x", "item_ids": [1]}], grpc.StatusCode.NOT_FOUND, "model: got 'x'"),
    "ragged": ([{"item_ids": [1, 2], "vectors": [1.0] * 23}], grpc.StatusCode.INVALID_ARGUMENT, "23 numbers of 2"),
    "narrow": (
        [{"model_version": VERSION, "item_ids": [1, 2], "vectors": [1.0] * 4}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "must be float32 (2, 12)",
    ),
    "a column ends": (
        [{"item_ids": [1], "vectors": [1.0] * 12}, {"item_ids": [2]}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "vectors: got 'of 1 items in widths [12]', must be of all 2, alike",
    ),
    "nan": (
        [{"model_version": VERSION, "item_ids": [1], "biases": [float("nan"), 0]}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "bias: got 'no finite number in row 0'",
    ),
    "later and idle": (
        [{"item_ids": [1], "vectors": [1.0] * 12}, {}],
        grpc.StatusCode.INVALID_ARGUMENT,
        "none in message 2",
    ),
    "a gap": (
        [{"model_version": VERSION, "number": 7, "item_ids": [1], "biases": [0, 0]}],
        grpc.StatusCode.FAILED_PRECONDITION,
        "number: got 7, must be 1",
    ),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_stream_is_refused(admin: Admin, what: str) -> None:
    given, code, text = BAD[what]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await admin.stub.UpdateItems(_sent(given))
    assert (raised.value.code(), text in (raised.value.details() or "")) == (code, True), raised.value.details()
    await assert_serves(admin.served, [])


def _sent(given: list[dict[str, Any]]) -> Iterator[ranking_pb2.UpdateItemsRequest]:
    for index, one in enumerate(given):
        yield ranking_pb2.UpdateItemsRequest(**({"last": index == len(given) - 1} | one))


async def test_four_megabytes_of_nothing(admin: Admin) -> None:
    send = admin.channel.stream_unary("/mfalcon.v1.Admin/UpdateItems", lambda one: one, lambda one: one)
    for raw in (b"\x42\x00" * (2 << 20), b"\x2a\x00" * (1 << 20), b"\0" * 1_000, b"\xff" * (1 << 20)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await send(iter([raw[: (4 << 20) - 64]]))
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, raised.value.details()
    await assert_serves(admin.served, [])


async def test_a_stream_that_breaks_off_changes_nothing(admin: Admin) -> None:
    [whole] = messages("", numbered(delta_of(CHECKPOINT, ITEMS), 1))
    whole.last = False
    call = admin.stub.UpdateItems()
    await call.write(whole)
    await asyncio.sleep(0.1)
    call.cancel()
    await asyncio.sleep(0.1)
    await assert_serves(admin.served, [])


async def test_the_command(admin: Admin, tmp_path: Path) -> None:
    delta = delta_of(CHECKPOINT, NEW, columns="vs")
    assert delta.vector is not None
    columns = {"item_id": delta.item_id, "vector": delta.vector} | {f"side.{n}": c for n, c in delta.side.items()}
    save_file({name: np.ascontiguousarray(one) for name, one in columns.items()}, tmp_path / "rows.safetensors")
    address = admin.address
    await asyncio.to_thread(update_items, tmp_path / "rows.safetensors", VERSION, address)
    await assert_serves(admin.served, [numbered(delta, 1)])
    with pytest.raises(CallFailed, match="must be more than 1, that of the last delta"):
        await asyncio.to_thread(update_items, tmp_path / "rows.safetensors", VERSION, address, number=1)


async def test_a_directory_is_applied_in_order_and_after_a_restart(tmp_path: Path) -> None:
    deltas = [numbered(delta_of(CHECKPOINT, np.concatenate([ITEMS[seed:], NEW]), seed), seed + 1) for seed in range(4)]
    write_delta(tmp_path, deltas[1])
    write_delta(tmp_path, deltas[0])
    foreign = dataclasses.replace(deltas[2], checkpoint="f" * 64, number=1)
    write_delta(tmp_path, foreign)
    async with serving(items_dir=tmp_path, items_watch_seconds=0.01) as served:
        await assert_serves(served, deltas[:2])
        write_delta(tmp_path, deltas[3])
        await asyncio.sleep(0.1)
        await assert_serves(served, deltas[:2])  # the third is not there
        write_delta(tmp_path, deltas[2])
        await _until(served, 4)
        await assert_serves(served, deltas)
    async with serving(items_dir=tmp_path) as served:  # nothing of the first server is left but the directory
        await assert_serves(served, deltas)


async def test_a_bad_file_holds_up_what_follows_until_it_is_mended_or_replaced(tmp_path: Path) -> None:
    deltas = [numbered(delta_of(CHECKPOINT, ITEMS[seed:], seed), seed + 1) for seed in range(5)]
    write_delta(tmp_path, deltas[0])
    manifest = write_delta(tmp_path, deltas[1])
    columns = tmp_path / json.loads(manifest.read_text())["file"]
    whole = columns.read_bytes()
    columns.write_bytes(whole[:-100])
    (tmp_path / f"junk{SUFFIX}").write_text("{")
    (tmp_path / f"huge{SUFFIX}").write_text(" " * 70_000)
    write_delta(tmp_path, deltas[2])
    async with serving(items_dir=tmp_path, items_watch_seconds=0.01) as served:
        await assert_serves(served, deltas[:1])
        columns.write_bytes(whole)
        await _until(served, 3)
        await assert_serves(served, deltas[:3])
        torn = json.loads(write_delta(tmp_path, deltas[3]).read_text())
        (tmp_path / torn["file"]).unlink()
        await asyncio.sleep(0.1)
        await assert_serves(served, deltas[:3])
        last = dataclasses.replace(deltas[4], number=9, replaces=True)
        write_delta(tmp_path, last)
        await _until(served, 9)
        await assert_serves(served, [*deltas[:3], last])


async def _until(served: Served[Engine], number: int) -> None:
    async with asyncio.timeout(60):
        while not (await rank(served)).items_version.startswith(f"{number}-"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

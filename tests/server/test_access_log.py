"""Every request that ends is a line, with what is known of it; what is wrong with the file is nobody's trouble."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import orjson
import pytest

from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.pseudonym import user_tag
from proto import ranking_pb2
from tests.server.harness import Running, serving
from tests.server.oip.asking import ITEMS, USER

RANK = ranking_pb2.RankRequest(user_id="ann", candidates=[1, 2, 3])
RANK_JSON = {"user_id": "ann", "candidates": [1, 2, 3]}
ALWAYS = {
    *("time", "request_id", "transport", "verb", "code", "answered", "slow", "took_us", "receive_us"),
    *("bytes_in", "bytes_out"),
}


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.02)


async def counted(running: Running, outcome: str) -> int:
    text = (await running.http.get("/metrics")).text
    name = f'mfalcon_access_log_lines_total{{outcome="{outcome}"}} '
    return sum(int(float(line.removeprefix(name))) for line in text.splitlines() if line.startswith(name))


async def refused(running: Running, message: ranking_pb2.RankRequest, request_id: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await running.stub.Rank(message, metadata=(("x-request-id", request_id),), timeout=60)


@pytest.mark.parametrize("frontends", [0, 1])
async def test_a_line_tells_what_is_known_of_its_request(frontends: int, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with serving(frontends=frontends, access_log=str(path)) as running:
        await running.stub.Rank(RANK, metadata=(("x-request-id", "one"),), timeout=60)
        await running.http.post("/v1/rank", json=RANK_JSON, headers={"x-request-id": "two"})
        await refused(running, ranking_pb2.RankRequest(candidates=[1]), "three")
        await running.http.delete("/v1/users/ann", headers={"x-request-id": "four"})
        await running.http.get("/v1/models", headers={"x-request-id": "five"})
        for name, place, body in (
            ("batch", "/v1/rank/batch", {"requests": [RANK_JSON, {"user_id": "ann"}]}),
            ("stream", "/v1/rank/stream", RANK_JSON),
            ("tensors", "/v2/models/fake/infer", {"inputs": [USER, ITEMS]}),
        ):
            assert (await running.http.post(place, json=body, headers={"x-request-id": name})).status_code == 200
        running.engine.fault = StorageUnavailable("the event log cannot be asked")
        await refused(running, RANK, "six")
        await eventually(lambda: len(lines(path)) == 9)
    told = {line["request_id"]: line for line in lines(path)}
    one, two, three, four, five, six = (told[name] for name in ("one", "two", "three", "four", "five", "six"))
    assert all(line.keys() >= ALWAYS for line in (one, two, three, four, five, six))
    assert (one["transport"], one["verb"], one["code"], one["answered"]) == ("grpc", "rank", "OK", True)
    assert (two["transport"], two["verb"], two["code"], two["bytes_in"]) == (
        "http",
        "rank",
        "200",
        len(orjson.dumps(RANK_JSON)),
    )
    assert one["bytes_in"] == RANK.ByteSize() and one["bytes_out"] > 0 and two["bytes_out"] > 0
    assert 0 < one["deadline_ms"] <= 10_000 and (one["candidates"], one["scored"], one["history_len"]) == (3, 3, 0)
    assert (one["model"], one["cache"], one["stages_us"]["queue"], one["stages_us"]["score"]) == ("fake", "host", 1, 4)
    assert (three["code"], three["answered"], four["verb"], five["verb"]) == (
        *("INVALID_ARGUMENT", False),
        *("delete_user", "list_models"),
    )
    assert (six["code"], six["answered"], six["candidates"]) == ("UNAVAILABLE", False, 3)
    assert six["stages_us"]["engine"] > 0
    batch, stream, tensors = (told[name] for name in ("batch", "stream", "tensors"))
    assert (batch["verb"], batch["parts"], batch["code"]) == ("rank_batch", {"OK": 1, "INVALID_ARGUMENT": 1}, "200")
    assert (stream["verb"], stream["scored"], tensors["verb"], tensors["scored"]) == (
        "rank_stream",
        3,
        "model_infer",
        2,
    )
    assert 0 < stream["first_part_us"] <= stream["took_us"] and "first_part_us" not in two
    assert all(line.keys() >= ALWAYS for line in (batch, stream, tensors))
    if not frontends:  # another process has the key of this one's names, too
        assert [line.get("user") for line in (one, two, four, six, stream, tensors)] == [user_tag("ann")] * 6
    assert b"ann" not in path.read_bytes()


async def test_of_the_good_a_sample_and_of_the_bad_and_the_slow_all(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with serving(access_log=str(path), access_log_sample=0, slow_log_ms=200) as running:
        for _ in range(5):
            await running.stub.Rank(RANK)
        await refused(running, ranking_pb2.RankRequest(candidates=[1]), "bad")
        running.engine.gate.clear()
        slow = asyncio.ensure_future(running.stub.Rank(RANK, metadata=(("x-request-id", "slow"),)))
        await running.engine.entered.wait()
        await asyncio.sleep(0.25)
        running.engine.gate.set()
        await slow
    logged = [(line["request_id"], line["slow"]) for line in lines(path) if line["took_us"] < 200_000 or line["slow"]]
    assert "bad" in dict(logged) and ("slow", True) in logged
    assert all(is_slow or name == "bad" for name, is_slow in logged)  # a busy machine may have made more of them slow


async def test_a_file_that_is_moved_or_deleted_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    async with serving(access_log=str(path)) as running:
        await running.stub.Rank(RANK)
        await eventually(lambda: len(lines(path)) == 1)
        path.rename(moved)
        running.service.hang_up()
        await running.stub.Rank(RANK)
        await eventually(lambda: len(lines(path)) == 1)
        assert len(lines(moved)) == 1
        path.unlink()
        async with asyncio.timeout(60):
            while not path.exists():  # it looks every second, when there is something to write
                await running.stub.Rank(RANK)
                await asyncio.sleep(0.1)
        await eventually(lambda: len(lines(path)) > 0)


async def test_a_pipe_that_nobody_reads_delays_nobody_and_loses_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    got = bytearray()
    try:
        async with serving(access_log=str(path)) as running:
            for _ in range(40):
                await asyncio.gather(*(running.http.get("/v1/model") for _ in range(10)))
            async with asyncio.timeout(60):
                while await counted(running, "written") < 400:
                    got += _read(reader)
                    await asyncio.sleep(0.02)
            got += _read(reader)
    finally:
        os.close(reader)
    assert len([orjson.loads(line) for line in bytes(got).splitlines()]) == 400


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
async def test_a_full_disk_loses_lines_and_counts_them() -> None:
    async with serving(access_log="/dev/full") as running:
        for _ in range(5):
            await running.stub.Rank(RANK)
        async with asyncio.timeout(60):
            while not await counted(running, "failed"):  # noqa: ASYNC110 (a counter has no event)
                await asyncio.sleep(0.05)
        assert await counted(running, "written") == 0
        assert (await running.http.post("/v1/rank", json=RANK_JSON)).status_code == 200


async def test_what_cannot_be_written_to_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="access_log: cannot write to"):
        async with serving(access_log=str(tmp_path / "nowhere" / "access.log")):
            pass
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(ConfigError, match="access_log: cannot write to"):
        async with serving(access_log=str(fifo)):
            pass


async def test_one_who_leaves_and_what_is_no_request_are_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with serving(access_log=str(path)) as running:
        running.engine.gate.clear()
        leaving = asyncio.create_task(running.http.post("/v1/rank", json=RANK_JSON, headers={"x-request-id": "gone"}))
        await running.engine.entered.wait()
        leaving.cancel()
        await asyncio.wait({leaving})
        host, _, port = running.addresses.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"mischief\r\n\r\n")
        await reader.read()
        writer.close()
        await eventually(lambda: len(lines(path)) == 2)
        running.engine.gate.set()
    assert {(line["code"], line["verb"]) for line in lines(path)} == {("499", "rank"), ("400", "")}


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 2**20)
    except BlockingIOError:
        return b""

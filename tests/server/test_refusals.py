"""Who makes thousands of mistakes waits for the answers; whoever asks rightly does not."""

import asyncio
import time

import grpc
import grpc.aio
import httpx
import pytest

from proto import ranking_pb2
from server.refusals import BURST_S, GRPC_FAULTS, HTTP_FAULTS, LONGEST_S, Refusals
from tests.loadtest.load.virtual_time import in_virtual_time
from tests.server.harness import serving

RATE = 10


async def turns(refusals: Refusals, count: int) -> list[float]:
    """After how many seconds each of so many that come at once may be told."""
    began = asyncio.get_running_loop().time()

    async def turn() -> float:
        await refusals.turn()
        return asyncio.get_running_loop().time() - began

    return sorted(await asyncio.gather(*(turn() for _ in range(count))))


def test_a_burst_is_told_at_once_and_the_rest_at_the_rate() -> None:
    paced: list[None] = []
    rate, at_once = 200, int(200 * BURST_S) + 1
    waited = in_virtual_time(turns(Refusals(rate, 1_000, lambda: paced.append(None)), 40))
    assert len(paced) == 40 - at_once
    for number, seconds in enumerate(waited[at_once:], start=1):
        assert seconds == pytest.approx(number / rate)


def test_beyond_the_longest_wait_nobody_waits() -> None:
    waited = in_virtual_time(turns(Refusals(100, 10), 100))
    assert sum(seconds < 0.1 for seconds in waited) >= 80
    assert max(waited) == pytest.approx(10 / 100, abs=0.011)


async def test_who_leaves_keeps_the_turn() -> None:
    paced: list[None] = []
    refusals = Refusals(10, 1_000_000, lambda: paced.append(None))
    waiting = [asyncio.create_task(refusals.turn()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(paced) == pytest.approx(10 * LONGEST_S, abs=2)


async def test_right_requests_do_not_wait_behind_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.refusals.LONGEST_S", 600.0)  # the wrong ones wait for as long as this test goes on
    async with (
        serving(max_refusals_per_s=1) as running,
        httpx.AsyncClient(base_url=running.http.base_url, timeout=60) as other,
    ):
        flood = [
            asyncio.create_task(running.http.post("/v1/rank", json={"user_id": "eve", "candidates": "none"}))
            for _ in range(20)
        ]
        calls = [running.stub.Rank(ranking_pb2.RankRequest(user_id="eve")) for _ in range(20)]
        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
        await running.stub.Rank(ranking_pb2.RankRequest(user_id="u", candidates=[1]), timeout=60)
        assert (await other.post("/v1/rank", json={"user_id": "u", "candidates": [1]}, timeout=60)).status_code == 200
        assert not all(task.done() for task in flood) and not all(call.done() for call in calls)
        for task in (*flood, *calls):
            task.cancel()
        await asyncio.wait(flood)


async def test_a_flood_of_mistakes_is_slowed_down() -> None:
    async with serving(max_refusals_per_s=RATE) as running:
        count, began, finished = 20, time.monotonic(), [0.0, 0.0]

        async def over_http(number: int) -> None:
            answer = await running.http.post("/v1/rank", json={"user_id": "eve", "candidates": "none"})
            assert answer.status_code == 422
            finished[0] = time.monotonic() - began

        async def over_grpc(number: int) -> None:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await running.stub.Rank(ranking_pb2.RankRequest(user_id="eve"), timeout=60)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            finished[1] = time.monotonic() - began

        flood = [asyncio.create_task(each(number)) for number in range(count) for each in (over_http, over_grpc)]
        await asyncio.gather(*flood)
        assert min(finished) >= (count - 1 - RATE * BURST_S) / RATE - 0.01
        page = (await running.http.get("/metrics")).text
        assert all(f'mfalcon_refusals_paced_total{{transport="{name}"}}' in page for name in ("grpc", "http"))
        shown = [
            float(line.split()[1]) for line in page.splitlines() if line.startswith("mfalcon_refusals_paced_total")
        ]
        assert min(shown) > 0


def test_only_what_the_caller_did_wrong_waits() -> None:
    assert not HTTP_FAULTS & {200, 409, 429, 499, 500, 503, 504}
    assert set(grpc.StatusCode.__members__) >= GRPC_FAULTS
    assert not GRPC_FAULTS & {"OK", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "FAILED_PRECONDITION", "DEADLINE_EXCEEDED"}


async def test_requests_that_are_sent_ahead_are_answered_in_order_after_a_rest_each() -> None:
    async with serving() as running:
        host, _, port = running.addresses.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        paths = [f"/v1/users/u/none-{number}" for number in range(8)]
        began = time.monotonic()
        writer.write(
            b"".join(f"GET {path} HTTP/1.1\r\nhost: a\r\nx-request-id: r{path[-1]}\r\n\r\n".encode() for path in paths)
        )
        for path in paths:
            head = await reader.readuntil(b"\r\n\r\n")
            assert f"x-request-id: r{path[-1]}\r\n".encode() in head
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
        assert time.monotonic() - began >= 0.01 * (len(paths) - 1) - 0.005
        writer.write(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.read(), 30)
        writer.close()


async def test_a_server_that_ends_does_not_wait_for_requests_that_rest() -> None:
    async with serving() as running:
        host, _, port = running.addresses.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" * 100)
        await reader.readuntil(b"\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 30)
    writer.close()

"""A server whose address space is nearly full still answers: what it needs, it has taken before."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import httpx
import pytest

from proto import ranking_pb2, ranking_pb2_grpc

ROOM = 4 << 20
"""Less than the stack of a thread."""
NUM_EVENTS = 10_000


@pytest.fixture
def full() -> Iterator[tuple[str, str]]:
    """Addresses of gRPC and HTTP of a server that may take little more memory."""
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        _, grpc_address, http_address = server.stdout.readline().split()
        pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM
        resource.prlimit(server.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        yield grpc_address.removeprefix("grpc="), http_address.removeprefix("http=")
        server.terminate()


async def test_a_large_append_is_answered_over_grpc(full: tuple[str, str]) -> None:
    events = [ranking_pb2.Event(item_id=1, actions=1, time_ms=number + 1) for number in range(NUM_EVENTS)]
    async with grpc.aio.insecure_channel(full[0]) as channel:
        stub = ranking_pb2_grpc.RankingStub(channel)
        request = ranking_pb2.AppendEventsRequest(user_id="ann", events=events)
        assert (await stub.AppendEvents(request, timeout=60)).history_len == NUM_EVENTS


async def test_a_large_append_is_answered_over_http(full: tuple[str, str]) -> None:
    events = [{"item_id": 1, "actions": 1, "time_ms": number + 1} for number in range(NUM_EVENTS)]
    async with httpx.AsyncClient(base_url=f"http://{full[1]}", timeout=60) as client:
        answer = await client.post("/v1/users/ann/events", json={"events": events})
        assert answer.status_code in (200, 429)

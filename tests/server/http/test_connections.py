"""Clients that are slow, silent or many cost no other client its answer, and no probe."""

import asyncio
import gc
import socket
import ssl
import struct
import sys
import weakref
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import orjson
import pytest

from server.http.connection import Connection
from tests.certificates import tls_in
from tests.server.harness import serving
from tests.server.http.raw import GENEROUS_SECONDS, Raw, ask, connected

ROOT = Path(__file__).parents[3]
LIVEZ = b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n"
READYZ = b"GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n"
HALF_A_HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\nx:"
HEAD = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
RANK_BODY = b'{"user_id":"ann","candidates":[1]}'
RANK = HEAD % len(RANK_BODY) + RANK_BODY
RESETS = struct.pack("ii", 1, 0)
"""Of a socket: to close is to reset."""


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (HALF_A_HEAD, "the head of the request: got no end within 0.3 s"),
        (LIVEZ + HALF_A_HEAD, "the head of the request: got no end within 0.3 s"),
        (HEAD % 100 + b'{"user_id"', "the body of the request: got no end within 0.6 s"),
        (b"POST /v1/users/ann/prefill HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n", "the body of the request"),
    ],
)
async def test_half_a_request_does_not_stay(sent: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(http_header_timeout_s=0.3, http_body_timeout_s=0.6) as running:
        running.engine.gate.clear()
        async with connected(running.addresses.http) as connection:
            await connection.send(sent)
            if sent.startswith(LIVEZ):
                assert (await connection.answer()).status == 200
                await connection.send(b"y")
            answer = await connection.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert answer.error[0] == "DEADLINE_EXCEEDED" and says in answer.error[1]
            assert await connection.rest() == b""
        assert not caplog.records


@pytest.mark.parametrize(
    ("request_line", "length", "rest", "outcome"),
    [
        (b"POST /v1/users/ann/events", b"content-length: 9", b'{"ev', "nothing-written"),
        (b"POST /v1/users/ann/events", b"transfer-encoding: chunked", b"ZZ\r\n", "nothing-written"),
        (b"POST /v1/rank", b"content-length: 9", b"", None),
    ],
)
async def test_a_write_whose_body_does_not_come_says_that_nothing_was_written(
    request_line: bytes, length: bytes, rest: bytes, outcome: str | None
) -> None:
    async with serving(http_body_timeout_s=0.3) as running, connected(running.addresses.http) as connection:
        await connection.send(request_line + b" HTTP/1.1\r\nhost: a\r\n" + length + b"\r\n\r\n" + rest)
        answer = await connection.answer()
        assert answer.status in (400, 408)
        assert orjson.loads(answer.body)["error"].get("outcome") == outcome


async def test_an_inference_whose_body_does_not_come_is_told_as_its_protocol_has_it() -> None:
    async with serving(http_body_timeout_s=0.3) as running, connected(running.addresses.http) as connection:
        await connection.send(b"POST /v2/models/fake/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
        answer = await connection.answer()
        assert answer.status == 408
        assert orjson.loads(answer.body) == {"error": "the body of the request: got no end within 0.3 s"}


async def test_a_body_that_nobody_asked_for_does_not_stay() -> None:
    """The answer is given at once; what then trickles in keeps the connection no longer than another body."""
    async with serving(http_body_timeout_s=0.3) as running, connected(running.addresses.http) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
        assert (await connection.answer()).status == 200

        async def trickle() -> None:
            while True:
                await connection.send(b"x")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert await connection.rest() == b""
        trickling.cancel()
        await asyncio.wait({trickling})


async def test_silence_does_not_stay() -> None:
    async with serving(http_header_timeout_s=0.3) as running, connected(running.addresses.http) as connection:
        assert await connection.rest() == b""


async def test_an_answer_that_is_not_read_does_not_stay() -> None:
    body = b'{"user_id":"ann","candidates":[%s1]}' % (b"1," * 16_000)
    async with serving(http_body_timeout_s=0.3) as running:
        host, _, port = running.addresses.http.rpartition(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, int(port)))
            async with asyncio.timeout(GENEROUS_SECONDS):
                with pytest.raises(ConnectionError):
                    while True:
                        await loop.sock_sendall(sock, HEAD % len(body) + body)


async def test_the_connection_that_waits_longest_makes_room() -> None:
    async with serving(http_connections=8) as running, AsyncExitStack() as stack:
        slow = [await stack.enter_async_context(connected(running.addresses.http)) for _ in range(8)]
        for connection in slow:
            await connection.send(HALF_A_HEAD)
        for _ in range(3):
            assert (await ask(running.addresses.http, LIVEZ)).status == 200
        assert await slow[0].rest() == b""
        await slow[-1].send(b"y\r\n\r\n")
        assert (await slow[-1].answer()).status == 422


async def test_no_probe_waits_for_requests_in_work_and_none_of_these_is_lost() -> None:
    async with serving(http_connections=4) as running, AsyncExitStack() as stack:
        running.engine.gate.clear()
        ranks = [await stack.enter_async_context(connected(running.addresses.http)) for _ in range(4)]
        for connection in ranks:
            await connection.send(RANK)
        async with asyncio.timeout(GENEROUS_SECONDS):
            while running.engine.num_entered < 4:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
        for _ in range(100):
            assert (await ask(running.addresses.http, LIVEZ)).status == 200
        running.engine.gate.set()
        for connection in ranks:
            assert (await connection.answer()).status == 200


@pytest.mark.parametrize("transport", ["http", "https"])
async def test_who_resets_his_connection_leaves_nothing_behind(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was to be done if he asked nothing more keeps no connection."""
    made, settings = list["weakref.ref[Connection]"](), dict[str, object]()
    tls: ssl.SSLContext | None = None
    if transport == "https":
        settings, tls = tls_in(tmp_path)
    right = Connection.connection_made

    def connection_made(connection: Connection, transport: asyncio.Transport) -> None:
        made.append(weakref.ref(connection))
        right(connection, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    async with serving(**settings) as running:
        host, _, port = running.addresses.http.rpartition(":")
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
            connection = Raw(reader, writer)
            await connection.send(RANK)
            assert (await connection.answer()).status == 200
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
            writer.transport.abort()
        async with asyncio.timeout(GENEROUS_SECONDS):
            while any(one() is not None for one in made):
                await asyncio.sleep(0.05)
                gc.collect()
        assert len(made) == 3


@asynccontextmanager
async def small_process(how: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A server that may open 256 files."""
    command = f"ulimit -n 256; exec {sys.executable} -m tests.server.serve_fake {how}"
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", command), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        address = (await process.stdout.readline()).decode().split("http=")[1].strip()
    try:
        yield address, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.parametrize("how", ["quick", "greedy"])
async def test_probes_are_answered_with_256_files_and_400_slow_connections(how: str) -> None:
    async with small_process(how) as (address, process), AsyncExitStack() as stack:
        slow: list[Raw] = []
        for _ in range(400):
            slow.append(await stack.enter_async_context(connected(address)))
            await slow[-1].send(HALF_A_HEAD)
        for _ in range(10):
            for probe in (LIVEZ, READYZ):
                assert (await ask(address, probe)).status == 200
        assert (await ask(address, RANK)).status == 200
        process.terminate()
        async with asyncio.timeout(60):
            _, said = await process.communicate()
        assert process.returncode == 0
        assert len(said) < 4_096, said[:4_096]
        assert b"Traceback" not in said

"""What is no request, or not one that everybody reads alike, is refused in JSON; nothing of it floods the log."""

import gzip
import logging

import pytest

from mfalcon.types import no_events
from tests.server.harness import Running, serving
from tests.server.http.raw import ask, connected

CHUNKED = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = b'{"user_id":"ann","candidates":[1,2]}'

REFUSED = {
    "no HTTP": (b"hello\r\n\r\n", 400, "INVALID_ARGUMENT", "illegal request line"),
    "a TLS handshake": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20 + b"\r\n\r\n",
        400,
        "INVALID",
        "",
    ),
    "no Host": (b"GET /livez HTTP/1.1\r\n\r\n", 400, "INVALID_ARGUMENT", "Missing mandatory Host: header"),
    "a malformed URL": (b"GET http://[a/livez HTTP/1.1\r\nhost: a\r\n\r\n", 400, "INVALID_ARGUMENT", "the URL of the"),
    "both lengths": (
        b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "INVALID_ARGUMENT",
        "Transfer-Encoding and Content-Length cannot both be given",
    ),
    "two lengths": (
        b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        400,
        "INVALID_ARGUMENT",
        "conflicting Content-Length headers",
    ),
    "another encoding": (
        b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        501,
        "UNIMPLEMENTED",
        "Only Transfer-Encoding: chunked is supported",
    ),
    "a head without an end": (
        b"GET /livez HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 10_000,
        431,
        "RESOURCE_EXHAUSTED",
        "Receive buffer too long",
    ),
    "a head of 60 KB": (
        b"GET /livez HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        431,
        "RESOURCE_EXHAUSTED",
        "Receive buffer too long",
    ),
    "a head of 101 headers": (
        b"GET /livez HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 100 + b"\r\n",
        431,
        "RESOURCE_EXHAUSTED",
        "headers: got 101, must be at most 100",
    ),
    "a chunk without a size": (CHUNKED + b"x\r\n", 400, "INVALID_ARGUMENT", ""),
    "chunks of a byte": (CHUNKED + b"1\r\n{\r\n" * 1_000, 400, "INVALID_ARGUMENT", "chunks: got 501 for 501 bytes"),
    "a trailer of 60 KB": (
        CHUNKED + b"0\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        431,
        "RESOURCE_EXHAUSTED",
        "Receive buffer too long",
    ),
}


@pytest.mark.parametrize("shown", REFUSED)
async def test_what_is_refused(running: Running, caplog: pytest.LogCaptureFixture, shown: str) -> None:
    request, status, code, says = REFUSED[shown]
    with caplog.at_level(logging.WARNING):
        async with connected(running.addresses.http) as connection:
            await connection.send(request)
            answer = await connection.answer()
            assert await connection.rest() == b""
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.error[0].startswith(code) and says in answer.error[1]
    assert not caplog.records
    assert not running.engine.requests


async def test_head_is_refused_without_a_body(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    request = b"HEAD /livez HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    async with connected(running.addresses.http) as connection:
        await connection.send(request)
        answer = await connection.rest()
    assert answer.startswith(b"HTTP/1.1 400 ") and answer.endswith(b"\r\n\r\n")
    assert not caplog.records


async def test_chunks_of_a_usual_size_are_read(running: Running) -> None:
    pieces = [BODY[start : start + 10] for start in range(0, len(BODY), 10)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, *[b" " * 1_000] * 1_000])
    answer = await ask(running.addresses.http, CHUNKED + chunks + b"0\r\n\r\n")
    assert answer.status == 200


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://other:8080/livez", 200),
        (b"https://other/v1/model?model=other", 200),
        (b"http://other/v1/model?model=none", 404),
        (b"http://other", 200),
        (b"ftp://other/livez", 404),
        (b"*", 404),
    ],
)
async def test_the_whole_url_may_be_the_target(running: Running, target: bytes, status: int) -> None:
    answer = await ask(running.addresses.http, b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % target)
    assert answer.status == status


async def test_requests_that_come_at_once_are_answered_in_order(running: Running) -> None:
    request = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
    async with connected(running.addresses.http) as connection:
        await connection.send(
            b"".join(request % (len(BODY), BODY) + b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" for _ in range(50))
        )
        for _ in range(50):
            assert b'"scores"' in (await connection.answer()).body
            assert (await connection.answer()).body == b'{"status":"ok"}'


async def test_an_upgrade_is_not_offered_and_not_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    request = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    assert (await ask(running.addresses.http, request)).status == 200
    assert not caplog.records


async def test_a_hundred_headers_are_welcome(running: Running) -> None:
    request = b"GET /livez HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 99 + b"\r\n"
    assert (await ask(running.addresses.http, request)).status == 200


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip", b"x" * 500])
async def test_a_body_that_is_compressed_is_refused_and_never_unpacked(running: Running, encoding: bytes) -> None:
    bomb = gzip.compress(bytes(2**20))
    head = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    head += b"content-encoding: %s\r\ncontent-length: %d\r\n\r\n" % (encoding, len(bomb))
    answer = await ask(running.addresses.http, head + bomb)
    code, says = answer.error
    assert (answer.status, code) == (422, "INVALID_ARGUMENT")
    assert says.startswith(f"content-encoding: got '{encoding[:50].decode()}") and len(says) < 200
    assert says.endswith(", must be identity: bodies are not decompressed")
    plain = head.replace(encoding, b"Identity").replace(b": %d\r" % len(bomb), b": %d\r" % len(BODY))
    assert (await ask(running.addresses.http, plain + BODY)).status == 200


async def test_the_length_of_a_head_is_a_setting() -> None:
    async with serving(max_metadata_bytes=40_000) as running:
        for size, status in ((30_000, 200), (60_000, 431)):
            request = b"GET /livez HTTP/1.1\r\nhost: a\r\na: %s\r\n\r\n" % (b"b" * size)
            assert (await ask(running.addresses.http, request)).status == status


async def test_a_wrong_method_is_told_the_right_one(running: Running) -> None:
    answer = await ask(running.addresses.http, b"PUT /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
    assert (answer.status, answer.headers["allow"]) == (405, "post")
    assert answer.error == ("UNIMPLEMENTED", "Method Not Allowed")


@pytest.mark.parametrize(("last", "allowed"), [("events", "post"), ("history", "get"), ("prefill", "post")])
async def test_what_is_of_a_user_is_not_deleted_as_a_user(running: Running, last: str, allowed: str) -> None:
    """The path of a user takes slashes, so a slip of a method would delete a user of a longer id."""
    running.engine.histories[f"ann/{last}"] = running.engine.histories["ann"] = no_events()
    answer = await ask(running.addresses.http, f"DELETE /v1/users/ann/{last} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert set(running.engine.histories) == {"ann", f"ann/{last}"}
    for user in (f"ann%2F{last}", "ann"):
        answer = await ask(running.addresses.http, f"DELETE /v1/users/{user} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        assert answer.status == 200
    answer = await ask(running.addresses.http, f"DELETE /v1/users/{last} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert answer.status == 200 and not running.engine.histories

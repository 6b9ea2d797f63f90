"""Hostile bodies of every kind for every verb: each gets a documented code, and another client misses nothing. `make
thorough` sends three times as many.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from tests.server.harness import Running, serving
from tests.server.http.raw import GENEROUS_SECONDS, Answer, ask, connected

MAX_BYTES = 4 * 2**20
DOCUMENTED = {200, 404, 409, 413, 422, 429}

GOOD_RANK = (
    b'{"user_id":"ann","candidates":[1,2,3],"top_k":2,"request_time_ms":5,"context":{"hour":3},'
    b'"recent_events":[{"item_id":1,"actions":1,"value":1.0,"time_ms":4}],"model":"fake"}'
)
GOOD_EVENTS = b'{"events":[{"item_id":50,"actions":16,"value":5.0,"time_ms":893286700000}],"expected_len":12}'
VERBS = {
    "rank": ("POST", "/v1/rank", GOOD_RANK),
    "append": ("POST", "/v1/users/mallory/events", GOOD_EVENTS),
    "prefill": ("POST", "/v1/users/mallory/prefill", b""),
    "delete": ("DELETE", "/v1/users/mallory", b""),
}
VALUES = (
    *(b"null", b"true", b"-1", b"1.5", b"1e400", b"-1e-400", b"NaN", b"Infinity", b'""', b"[]", b"{}", b"[[]]"),
    *(b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"9" * 5_000, b"0." + b"9" * 5_000),
    *(b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"\\x"', b'"%s"' % (b"x" * 70_000), b"[%s1]" % (b"1," * 40_000)),
)


def with_a_wrong_value(good: bytes, rng: random.Random) -> bytes:
    at = rng.choice([at for at in range(len(good)) if good[at : at + 1] == b":"] or [0])
    return good[: at + 1] + rng.choice(VALUES) + good[at + 2 :]


def with_wrong_bytes(good: bytes, rng: random.Random) -> bytes:
    body = bytearray(good)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(body) + 1)
        body[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
    return bytes(body)


def cut_short(good: bytes, rng: random.Random) -> bytes:
    return good[: rng.randrange(len(good) + 1)]


def with_unknown_fields(good: bytes, rng: random.Random) -> bytes:
    fields = b",".join(b'"f%d":%d' % (number, number) for number in range(rng.choice([1, 10, 1_000, 20_000, 300_000])))
    return good[:-1] + b"," + fields + b"}"


def with_repeated_fields(good: bytes, rng: random.Random) -> bytes:
    return good[:-1] + (b"," + good[1:-1]) * rng.choice([1, 1_000]) + b"}"


def deep(good: bytes, rng: random.Random) -> bytes:
    depth = rng.choice([10, 1_000, 1_025, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"events":[', b"]}"), (b'{"context":{', b"}}")])
    return opened * depth + rng.choice([b"", b"1", closed * depth, b"1" + closed * depth])


def long(good: bytes, rng: random.Random) -> bytes:
    element = rng.choice([b"1", b"{}", b"[]", b'""', b"null", b"0.1"])
    name = rng.choice([b"candidates", b"events", b"recent_events", b"context", b"user_id"])
    num = rng.choice([16_385, 30_000, 1_000_000])
    return b'{"user_id":"ann","candidates":[1],"%s":[%s%s]}' % (name, (element + b",") * num, element)


def large(good: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [
            b" " * (MAX_BYTES - len(good)) + good,
            b" " * (MAX_BYTES + 1),
            b'{"user_id":"%s"}' % (b"\\ud83d\\ude00" * 300_000),
            b'{"user_id":%s}' % (b"9" * 4_000_000),
            b'{"%s":1}' % (b"x" * 4_000_000),
        ]
    )


def strange(good: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"",
            b"null",
            b"0",
            b'"text"',
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
            good + good,
            rng.randbytes(rng.choice([1, 100, 100_000])),
        ]
    )


HOSTILE: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(with_a_wrong_value, with_wrong_bytes, cut_short, with_unknown_fields, with_repeated_fields),
    *(deep, long, large, strange),
)


async def in_chunks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.slow
@pytest.mark.parametrize("num_bodies", [63, pytest.param(200, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("verb", VERBS)
async def test_hostile_bodies_get_documented_codes_and_cost_no_other_client_an_answer(
    verb: str, num_bodies: int, caplog: pytest.LogCaptureFixture
) -> None:
    method, path, good = VERBS[verb]
    rng = random.Random(verb)
    async with serving() as running:
        others = asyncio.create_task(rank_until_cancelled(running))
        running.http.timeout = httpx.Timeout(60)
        for number in range(num_bodies):
            body = HOSTILE[number % len(HOSTILE)](good or GOOD_RANK, rng)
            chunked = rng.random() < 0.25
            answer = await running.http.request(
                method,
                path,
                content=in_chunks(body, rng.choice([1_000, 65_536])) if chunked else body,
                headers={"content-type": rng.choice(["application/json", "application/json", "text/plain", ";"])},
            )
            assert answer.status_code in DOCUMENTED, (body[:200], answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
        others.cancel()
        assert await others > 0
        assert not caplog.records


async def rank_until_cancelled(running: Running) -> int:
    """The number of ranks of another client; every answer is right."""
    num_ranked = 0
    async with httpx.AsyncClient(base_url=f"http://{running.addresses.http}", timeout=GENEROUS_SECONDS) as http:
        try:
            while True:
                answer = await http.post("/v1/rank", json={"user_id": "bob", "candidates": [1, num_ranked]})
                assert answer.status_code == 200
                first, second = answer.json()["scores"]
                assert [first, second] == pytest.approx([1 / 977, num_ranked % 977 / 977], abs=1e-6)
                num_ranked += 1
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            return num_ranked


async def test_bodies_that_wait_take_no_more_memory_than_64_of_the_largest() -> None:
    head = b"POST /v1/rank HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    whole = b'{"user_id":"ann","candidates":[1]}'
    async with serving(max_message_bytes=1_024, max_candidates=100) as running:
        async with AsyncExitStack() as stack:
            for _ in range(66):
                connection = await stack.enter_async_context(connected(running.addresses.http))
                await connection.send(head + b" " * 990)
            refused = await ask_until(running, head, whole, 429)
            assert refused.error[0] == "RESOURCE_EXHAUSTED" and "at most 65536 bytes together" in refused.error[1]
            assert "retry-after" in refused.headers
        await ask_until(running, head, whole, 200)


async def ask_until(running: Running, head: bytes, body: bytes, status: int) -> Answer:
    """The first answer with this status."""
    async with asyncio.timeout(GENEROUS_SECONDS):
        while True:
            answer = await ask(running.addresses.http, head + b" " * (1_000 - len(body)) + body)
            if answer.status == status:
                return answer
            await asyncio.sleep(0.01)


async def test_a_body_that_no_verb_reads_is_bounded_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as running:
        running.engine.gate.clear()
        answer = await running.http.post("/v1/users/ann/prefill", content=b" " * (MAX_BYTES + 1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "RESOURCE_EXHAUSTED")
        assert running.engine.num_cancelled == 1
    assert not caplog.records

"""What hostile clients do to a server, each in a process of its own: `python -m loadtest.faults.attacks NAME ...`.

Each attack tells how it was answered, by code, and what an answer said that it must not. A connection that the server
closed is an answer too; one that it keeps open without a word is counted as silent.
"""

import asyncio
import contextlib
import gzip
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grpc.aio

from loadtest.faults import raw_http2
from loadtest.faults.mutate import mutate
from loadtest.faults.raw_http2 import DATA, END_HEADERS, END_STREAM, HEADERS, PING, SETTINGS, frame
from loadtest.faults.tls_attacks import handshakes, slow_handshakes
from loadtest.faults.victim import (
    AT_ONCE,
    CLOSED,
    PATIENCE_S,
    SILENT,
    Attack,
    Heard,
    Victim,
    answer,
    at_once,
    note_raw,
    until_closed,
)
from proto import ranking_pb2 as pb

CONTINUATION = 9
RANK = "/mfalcon.v1.Ranking/Rank"
_EVENT = pb.Event(item_id=7, actions=1, value=3.0, time_ms=4)
MESSAGES = (
    ("Rank", pb.RankRequest(user_id="eve", candidates=range(50), top_k=2, recent_events=[_EVENT], context={"hour": 3})),
    ("AppendEvents", pb.AppendEventsRequest(user_id="eve", events=[_EVENT] * 3, append_id="a", late_events="clamp")),
    ("GetHistory", pb.GetHistoryRequest(user_id="eve", first=1, limit=9, with_states=True)),
    ("Interests", pb.InterestsRequest(user_id="eve", conditions=["like"], top_items=3, recent_events=[_EVENT])),
    ("Prefill", pb.PrefillRequest(user_id="eve", model="m")),
    ("DeleteUser", pb.DeleteUserRequest(user_id="eve")),
    ("GetModel", pb.GetModelRequest(model="m")),
    ("ListModels", pb.ListModelsRequest()),
)
BODIES = (
    (
        b"POST /v1/rank",
        b'{"user_id":"eve","candidates":[1,2],"top_k":2,"context":{"hour":3},"recent_events":[{"item_id":1,"time_ms":4}]}',
    ),
    (
        b"POST /v1/users/eve/events",
        b'{"events":[{"item_id":50,"actions":1,"value":5.0,"time_ms":893286700000}],"expected_len":0,"append_id":"a"}',
    ),
)
_HOST = b"host: a\r\ncontent-type: application/json\r\n"


async def malformed_protobufs(victim: Victim, heard: Heard) -> None:
    """Mutated messages of every method."""
    rng = random.Random(17)
    corpus = {name: [b"", b"\0", message.SerializeToString() or b"\x0a\0"] for name, message in MESSAGES}
    async with victim.channel() as channel:
        calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {
            name: channel.unary_unary(f"/mfalcon.v1.Ranking/{name}") for name in corpus
        }

        async def ask(number: int) -> None:
            name = MESSAGES[number % len(MESSAGES)][0]
            message = rng.randbytes(rng.randrange(1, 99)) if number % 5 == 0 else mutate(corpus[name], rng)
            try:
                await calls[name](message, timeout=PATIENCE_S)
                heard.add("OK")
            except grpc.aio.AioRpcError as error:
                heard.add(error.code().name, error.details() or "", message)

        await at_once(ask, victim.count)


async def malformed_bodies(victim: Victim, heard: Heard) -> None:
    """Mutated JSON of every route that reads some, over connections that are kept."""
    rng = random.Random(17)
    shares = [range(start, victim.count, AT_ONCE) for start in range(min(AT_ONCE, victim.count))]

    async def send_all(numbers: Sequence[int]) -> None:
        reader, writer = await victim.open(victim.http)
        for number in numbers:
            line, good = BODIES[number % len(BODIES)]
            body = rng.randbytes(rng.randrange(1, 99)) if number % 5 == 0 else mutate([good], rng)
            writer.write(b"%s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n" % (line, _HOST, len(body)) + body)
            status, text = await answer(reader)
            heard.add(status, text, body)
            if status == CLOSED:
                reader, writer = await victim.open(victim.http)
        writer.close()

    await asyncio.gather(*map(send_all, shares))


async def slow_connections(victim: Victim, heard: Heard) -> None:
    """Heads and bodies that come a byte a second, gRPC prefaces and messages that never end."""
    starts = (
        (victim.http, b"GET /v1/model HTTP/1.1\r\nhost: a\r\nx: "),
        (victim.http, b"POST /v1/rank HTTP/1.1\r\n" + _HOST + b"content-length: 100000\r\n\r\n"),
        (victim.grpc, raw_http2.PREFACE[:9]),
        (victim.grpc, raw_http2.PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, raw_http2.call(RANK))),
    )

    async def trickle(number: int) -> None:
        address, start = starts[number % len(starts)]
        reader, writer = await victim.open(address)
        writer.write(start)
        reading = asyncio.create_task(until_closed(reader))
        give_up = asyncio.get_running_loop().time() + PATIENCE_S
        with contextlib.suppress(ConnectionError):
            while not reading.done() and asyncio.get_running_loop().time() < give_up:
                await asyncio.wait((reading,), timeout=1)
                if address == victim.http and not reading.done():
                    writer.write(b"a")
        if not reading.done():
            reading.cancel()
            heard.add(f"{SILENT} ({'http' if address == victim.http else 'grpc'})")
        else:
            note_raw(heard, reading.result())
        writer.transport.abort()

    await at_once(trickle, victim.count, victim.count)


async def compressed_bombs(victim: Victim, heard: Heard) -> None:
    """64 MB of zeros in 64 KB: as a compressed message of gRPC, and as a body with a content encoding over HTTP."""
    bomb = gzip.compress(bytes(64 << 20))

    async def send(number: int) -> None:
        if number % 2:
            reader, writer = await victim.open(victim.http)
            head = b"POST /v1/rank HTTP/1.1\r\n%scontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (_HOST, len(bomb)) + bomb)
            heard.add(*await answer(reader), bomb)
            writer.close()
            return
        async with victim.open_http2() as connection:
            headers = raw_http2.call(RANK, grpc_encoding="gzip")
            parts = [bomb[at : at + 16_000] for at in range(0, len(bomb), 16_000)]
            parts[0] = b"\1" + len(bomb).to_bytes(4, "big") + parts[0]
            sent = frame(HEADERS, END_HEADERS, 1, headers) + b"".join(frame(DATA, 0, 1, part) for part in parts)
            await connection.send(sent + frame(DATA, END_STREAM, 1))
            await heard_of(connection, heard)

    await at_once(send, victim.count, 4)


async def large_heads(victim: Victim, heard: Heard) -> None:
    """1 MB of headers over HTTP, of metadata over gRPC, and a path of 1 MB."""

    async def send(number: int) -> None:
        if number % 3 == 2:
            block = raw_http2.call(RANK) + b"".join(raw_http2.header(f"x-{at}", "v" * 120) for at in range(8_000))
            async with victim.open_http2() as connection:
                parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
                frames = [frame(HEADERS, 0, 1, parts[0]), *(frame(CONTINUATION, 0, 1, part) for part in parts[1:-1])]
                await connection.send(b"".join(frames) + frame(CONTINUATION, END_HEADERS, 1, parts[-1]))
                await heard_of(connection, heard)
            return
        path, more = (b"/v1/model", b"x: %s\r\n" % (b"v" * 2**20)) if number % 3 else (b"/v1/" + b"p" * 2**20, b"")
        reader, writer = await victim.open(victim.http)
        with contextlib.suppress(ConnectionError):
            writer.write(b"GET %s HTTP/1.1\r\nhost: a\r\n%s\r\n" % (path, more))
            await writer.drain()
        heard.add(*await answer(reader))
        writer.transport.abort()

    await at_once(send, victim.count, 4)


async def unread_answers(victim: Victim, heard: Heard) -> None:
    """Large answers that nobody reads: a window of 0 bytes over gRPC, a full socket over HTTP. They are asked for one
    by one, so that what others wait for is not the ranks themselves.
    """
    await _leave_unread(victim, heard, evenly=True)


async def unread_overload(victim: Victim, heard: Heard) -> None:
    """The same as fast as the server ranks, over HTTP into sockets that have room: an overload of right requests."""
    await _leave_unread(victim, heard, evenly=False)


async def _leave_unread(victim: Victim, heard: Heard, *, evenly: bool) -> None:
    most, kept_s = 64, 5.0
    message = pb.RankRequest(user_id="eve", candidates=range(2_000), top_k=2_000).SerializeToString()
    body = b'{"user_id":"eve","candidates":[%s]}' % b",".join(b"%d" % item for item in range(2_000))

    async def ask(number: int) -> None:
        if evenly and number < most:
            await asyncio.sleep(number * kept_s / most)
        if number % 2:
            async with victim.open_http2(reads=False) as connection:
                await connection.begin(RANK, message)
                await asyncio.sleep(kept_s)
                heard.add(CLOSED if connection.closed.is_set() else "left unread")
            return
        _, writer = await victim.open(victim.http, has_room=not evenly)
        for _ in range(20):
            writer.write(b"POST /v1/rank HTTP/1.1\r\n%scontent-length: %d\r\n\r\n" % (_HOST, len(body)) + body)
        await asyncio.sleep(kept_s)
        heard.add("left unread")
        writer.transport.abort()

    await at_once(ask, victim.count, most)


async def floods(victim: Victim, heard: Heard) -> None:
    """Streams that are reset at once, settings, pings and continuations without an end, on one connection each."""
    many = 200
    kinds = ("reset", "settings", "ping", "continuation", "streams")

    async def flood(number: int) -> None:
        async with victim.open_http2() as connection:
            with contextlib.suppress(ConnectionError):
                match kinds[number % len(kinds)]:
                    case "reset":
                        await connection.open_calls(RANK, 2_000, reset=True)
                    case "streams":
                        await connection.open_calls(RANK, 2_000)
                    case "settings":
                        for _ in range(many):
                            await connection.send(frame(SETTINGS, 0, 0, b"\0\4\0\0\xff\xff") * 50)
                    case "ping":
                        for _ in range(many):
                            await connection.send(frame(PING, 0, 0, bytes(8)) * 50)
                    case "continuation":
                        await connection.send(frame(HEADERS, 0, 1, raw_http2.call(RANK)))
                        for _ in range(many):
                            await connection.send(frame(CONTINUATION, 0, 1, raw_http2.header("x", "y" * 100)) * 50)
                await asyncio.sleep(1)
            heard.add(CLOSED if connection.closed.is_set() else "kept")

    await at_once(flood, victim.count, 4)


async def half_messages(victim: Victim, heard: Heard) -> None:
    """Clients that leave in the middle: of a gRPC message, of a frame, of a body, of a chunk."""
    message = MESSAGES[0][1].SerializeToString()
    begun = raw_http2.PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, raw_http2.call(RANK))
    whole = frame(DATA, END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message)
    chunked = b"POST /v1/rank HTTP/1.1\r\n" + _HOST + b"transfer-encoding: chunked\r\n\r\nff\r\n{"
    bodies = b"POST /v1/users/eve/events HTTP/1.1\r\n" + _HOST + b"content-length: 99\r\n\r\n{"
    rng = random.Random(17)

    async def leave(number: int) -> None:
        halves = (
            (victim.grpc, begun + whole[: rng.randrange(len(whole))]),
            (victim.http, chunked),
            (victim.http, bodies),
            (victim.grpc, begun[: rng.randrange(len(begun))]),
        )
        address, half = halves[number % len(halves)]
        _, writer = await victim.open(address)
        writer.write(half)
        await writer.drain()
        await asyncio.sleep(0.01)
        if number % 3:
            writer.transport.abort()
        else:
            writer.close()
        heard.add("left")

    await at_once(leave, victim.count)


async def pipelines(victim: Victim, heard: Heard) -> None:
    """A hundred requests in one write, of which some are malformed: answered in order, up to the first of these."""

    async def send(number: int) -> None:
        reader, writer = await victim.open(victim.http)
        good = b"GET /v1/model HTTP/1.1\r\nhost: a\r\n\r\n"
        requests = [good] * 100
        requests[50 + number % 40] = b"GET /v1/model HTTP/1.1\r\n: \r\n\r\n"
        writer.write(b"".join(requests))
        expected = 50 + number % 40
        statuses = []
        while (told := await answer(reader))[0] != CLOSED:
            statuses.append(told[0])
            heard.add(*told)
        if statuses != ["200"] * expected + ["400"]:
            heard.leaks.append(f"a pipeline was answered {Counter(statuses)}, must be {expected} times 200, then 400")
        writer.close()

    await at_once(send, victim.count, 4)


SMUGGLED = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"
SMUGGLING = (
    b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    b"content-length: 0\r\ncontent-length: 35\r\n\r\n" + SMUGGLED,
    b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    b"content-length: +0\r\n\r\n" + SMUGGLED,
    b"content-length: 0x0\r\n\r\n" + SMUGGLED,
    b"content-length: -1\r\n\r\n" + SMUGGLED,
    b"x: y\r\n content-length: 0\r\n: z\r\n\r\n" + SMUGGLED,
    b"x: y\rcontent-length: 35\r\n\r\n" + SMUGGLED,
)


async def smuggling(victim: Victim, heard: Heard) -> None:
    """Two lengths, a length and chunks, spellings that proxies read differently: refused, and what follows not read."""

    async def send(number: int) -> None:
        reader, writer = await victim.open(victim.http)
        writer.write(b"POST /v1/rank HTTP/1.1\r\nhost: a\r\n" + SMUGGLING[number % len(SMUGGLING)])
        status, text = await answer(reader)
        heard.add(status, text)
        following = status if status == CLOSED else (await answer(reader))[0]
        if following != CLOSED:
            heard.leaks.append(f"{SMUGGLING[number % len(SMUGGLING)][:60]!r} was answered {status}, then {following}")
        writer.close()

    await at_once(send, victim.count, 4)


async def watches(victim: Victim, heard: Heard) -> None:
    """Health watches without an end, and questions of reflection, on several connections."""

    async def watch(number: int) -> None:
        method = "/grpc.health.v1.Health/Watch"
        if number % 2:
            method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        begun = b""
        async with victim.open_http2() as connection:
            for at in range(500):
                message = b"\x3a\0" if number % 2 else b""
                body = b"\0" + len(message).to_bytes(4, "big") + message
                begun += frame(HEADERS, END_HEADERS, 2 * at + 1, raw_http2.call(method))
                begun += frame(DATA, 0, 2 * at + 1, body)
            with contextlib.suppress(ConnectionError):
                await connection.send(begun)
                await asyncio.sleep(3)
            heard.add(CLOSED if connection.closed.is_set() else "kept")
            heard.codes["answered"] += connection.heard[HEADERS]

    await at_once(watch, victim.count, 8)


async def heard_of(connection: raw_http2.Connection, heard: Heard) -> None:
    """The status of the one call of a connection, or that it was reset or closed."""
    give_up = asyncio.get_running_loop().time() + PATIENCE_S
    while asyncio.get_running_loop().time() < give_up:
        if connection.statuses:
            heard.add(_STATUS.get(connection.statuses[0], str(connection.statuses[0])))
            return
        if connection.closed.is_set() or connection.heard[raw_http2.RST_STREAM]:
            heard.add(CLOSED)
            return
        await asyncio.sleep(0.01)
    heard.add(SILENT)


_STATUS = {code.value[0]: code.name for code in grpc.StatusCode}

ATTACKS: dict[str, tuple[Attack, int]] = {
    "malformed protobufs": (malformed_protobufs, 100_000),
    "malformed JSON bodies": (malformed_bodies, 100_000),
    "slow connections": (slow_connections, 500),
    "compressed bombs": (compressed_bombs, 200),
    "1 MB of headers": (large_heads, 180),
    "answers that nobody reads": (unread_answers, 200),
    "an overload of these": (unread_overload, 200),
    "floods of frames": (floods, 50),
    "half messages": (half_messages, 5_000),
    "pipelines": (pipelines, 100),
    "smuggling": (smuggling, 1_100),
    "health watches and reflection": (watches, 40),
}
"""Each with how often it is made."""
TLS_ATTACKS: dict[str, tuple[Attack, int]] = {
    "slow handshakes": (slow_handshakes, 500),
    "handshakes": (handshakes, 10_000),
}
"""Of a server that speaks TLS."""


def main(name: str, grpc_address: str, http_address: str, count: str, certificate: str | None = None) -> None:
    """Make an attack, and tell what was heard as JSON on standard output."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a connection that was closed
    heard = Heard()
    attack, _ = (ATTACKS | TLS_ATTACKS)[name]
    victim = Victim(grpc_address, http_address, int(count), None if certificate is None else Path(certificate))
    asyncio.run(_run(attack, victim, heard))
    print(json.dumps({"codes": heard.codes, "leaks": heard.leaks}))


async def _run(attack: Attack, victim: Victim, heard: Heard) -> None:
    await attack(victim, heard)


if __name__ == "__main__":
    main(*sys.argv[1:])

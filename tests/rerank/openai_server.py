"""An OpenAI-compatible server that answers as it is told, over a real socket: right, wrong, half, late or for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

Answer = Callable[["Asked"], bytes | Awaitable[bytes]]


@dataclass
class Asked:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def told(self) -> dict[str, Any]:
        """What the model is told of the user and the candidates."""
        told: dict[str, Any] = orjson.loads(self.body["messages"][1]["content"])
        return told

    @property
    def numbers(self) -> list[int]:
        """Of the candidates, in the order in which they are shown."""
        return [candidate["number"] for candidate in self.told["candidates"]]


@dataclass
class OpenAIServer:
    """answer: what is written for a request, whole: status line, headers and body."""

    answer: Answer
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    num_open: int = 0
    num_left: int = 0
    """Callers who hung up before they had all of an answer."""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = orjson.loads(await reader.readexactly(int(headers["content-length"])))
                asked = Asked(head[0].split()[1], headers, body)
                self.asked.append(asked)
                answer = self.answer(asked)
                if not isinstance(answer, bytes):
                    left = asyncio.ensure_future(reader.read(1))  # which ends when the caller hangs up
                    pending = asyncio.ensure_future(answer)
                    await asyncio.wait((left, pending), return_when=asyncio.FIRST_COMPLETED)
                    if not pending.done():
                        self.num_left += 1
                        pending.cancel()
                        return
                    left.cancel()
                    await asyncio.wait((left,))  # one at a time may read
                    answer = pending.result()
                writer.write(answer)
                await writer.drain()
                if b"connection: close" in answer[:500]:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.num_open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def openai_server(answer: Answer) -> AsyncIterator[OpenAIServer]:
    """Listens on a free port of loopback while the block runs."""
    served = OpenAIServer(answer)
    server = await asyncio.start_server(served.talk, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield served
    finally:
        server.close()


def http(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """An answer with these headers beside its length."""
    lines = [f"HTTP/1.1 {status}", "content-type: application/json", *headers]
    if not any(header.startswith("content-length") for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def completion(content: object, **message: object) -> bytes:
    """A chat completion that says something."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content} | message, "finish_reason": "stop"}
    return http(orjson.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}))


def ordered(numbers: object) -> bytes:
    """A chat completion of an order."""
    return completion(orjson.dumps({"order": numbers}).decode())


def reversed_order(asked: Asked) -> bytes:
    """A good answer to whatever is asked: twice of it is the order as it was."""
    return ordered(asked.numbers[::-1])


def rotated(asked: Asked) -> bytes:
    """A good answer: the last one that is shown comes first."""
    return ordered(asked.numbers[-1:] + asked.numbers[:-1])


async def never(_: Asked) -> bytes:
    """No answer at all."""
    await asyncio.sleep(3_600)
    return b""


HALF = http(b'{"choices": [{"message": {"con', "200 OK", "content-length: 300", "connection: close")

FAULTS: dict[str, tuple[Answer, str]] = {
    "late": (never, "late"),
    "status 500": (lambda asked: http(b"{}", "500 Internal Server Error"), "failed"),
    "half an answer": (lambda asked: HALF, "failed"),
    "no permutation": (lambda asked: completion("I would start with the second one."), "no_permutation"),
    "one missing": (lambda asked: ordered(asked.numbers[1:]), "no_permutation"),
    "foreign numbers": (lambda asked: ordered([number + 1 for number in asked.numbers]), "no_permutation"),
    "duplicates": (lambda asked: ordered([asked.numbers[0], *asked.numbers[:-1]]), "no_permutation"),
    "10 MB": (lambda asked: http(b'{"choices": "' + b"x" * 10_000_000 + b'"}'), "failed"),
    "invalid UTF-8": (lambda asked: http(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), "failed"),
    "a redirect": (lambda asked: http(b"", "307 Temporary Redirect", "location: /elsewhere"), "failed"),
    "a list": (lambda asked: http(b"[1, 2, 3]"), "failed"),
    "content as a number": (lambda asked: completion(7), "failed"),
    "numbers as texts": (lambda asked: ordered([str(number) for number in asked.numbers]), "no_permutation"),
    "numbers as reals": (lambda asked: ordered([float(number) for number in asked.numbers]), "no_permutation"),
    "a refusal": (lambda asked: completion(None, refusal="I cannot help with that."), "refused"),
    "not HTTP": (lambda asked: b"220 mail.example.org ESMTP\r\n\r\n", "failed"),
    "a byte at a time": (
        lambda asked: http(
            b"1\r\nx\r\n" * 100_000, "200 OK", "transfer-encoding: chunked", "content-length: 9"
        ).replace(b"content-length: 9\r\n", b""),
        "failed",
    ),
}
"""By name: what is answered, and the reason that is given. That nothing listens, and that titles give orders, are
faults too, of which there is nothing to answer.
"""

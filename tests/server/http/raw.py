"""HTTP by hand, for what no client library would send."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

GENEROUS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> tuple[str, str]:
        """Code and message."""
        assert self.headers["content-type"] == "application/json"
        error = orjson.loads(self.body)["error"]
        assert error.keys() == {"code", "message", "field"}
        return error["code"], error["message"]


@dataclass(frozen=True, slots=True)
class Raw:
    """A connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """All of it."""
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """The next one."""
        async with asyncio.timeout(GENEROUS_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(GENEROUS_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Raw]:
    """A connection to HOST:PORT."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def ask(address: str, request: bytes) -> Answer:
    """The first answer to these bytes, on a connection of its own."""
    async with connected(address) as connection:
        await connection.send(request)
        return await connection.answer()

"""HTTP/2 frames by hand (RFC 9113), for what no gRPC client sends: thousands of streams, opened at once or reset."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
REFUSED_STREAM, CANCEL = 7, 8
NO_WINDOW = b"\0\4" + bytes(4)
"""The setting of an initial window of 0 bytes."""
Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
STATUS = re.compile(rb"grpc-status.(\d+)", re.DOTALL)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Length, kind, flags, stream, payload."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header(name: str, value: str) -> bytes:
    """A literal header that no table remembers (RFC 7541, section 6.2.2); texts of at most 126 bytes."""
    return b"".join((b"\0", bytes((len(name),)), name.encode(), bytes((len(value),)), value.encode()))


def call(method: str, **more: str) -> bytes:
    """The headers that begin a gRPC call of /SERVICE/METHOD."""
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "test", "te": "trailers"}
    headers |= {"content-type": "application/grpc"}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(header(name, value) for name, value in headers.items())


class Connection:
    """Frames to a server, and a count of what came back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.heard: Counter[int] = Counter()
        """Frames by kind."""
        self.num_refused = 0
        self.statuses: list[int] = []
        """Numbers of gRPC statuses; only of the first call, later ones may be packed."""
        self.headers: list[bytes] = []
        """What came in frames of headers, packed."""
        self.closed = asyncio.Event()

    async def open_calls(self, method: str, num: int, *, reset: bool = False) -> None:
        """Begin calls without a message; reset: and cancel each at once."""
        headers = call(method)
        for number in range(num):
            stream = 2 * number + 1
            self._writer.write(frame(HEADERS, END_HEADERS, stream, headers))
            if reset:
                self._writer.write(frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")))
            if number % 100 == 99:
                await self._writer.drain()
        await self._writer.drain()

    async def ask(self, method: str, message: bytes, **headers: str) -> int:
        """The status of the one call on this connection."""
        await self.begin(method, message, **headers)
        while not self.statuses:
            assert not self.closed.is_set()
            await asyncio.sleep(0.01)
        return self.statuses[0]

    async def begin(self, method: str, message: bytes, **headers: str) -> None:
        """Make the one call on this connection, whatever becomes of it."""
        body = b"\0" + len(message).to_bytes(4, "big") + message
        self._writer.write(frame(HEADERS, END_HEADERS, 1, call(method, **headers)) + frame(DATA, END_STREAM, 1, body))
        await self._writer.drain()

    async def send(self, frames: bytes) -> None:
        """Frames as they are."""
        self._writer.write(frames)
        await self._writer.drain()

    async def round_trip(self) -> None:
        """Return when the server has read all that was sent."""
        num_pings = self.heard[PING]
        self._writer.write(frame(PING, 0, 0, bytes(8)))
        while self.heard[PING] == num_pings and not self.closed.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def listen(self) -> None:
        """Count what comes until the server closes."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags = head[3], head[4]
                if kind == PING and not flags & ACK:
                    self._writer.write(frame(PING, ACK, 0, payload))
                    continue
                self.heard[kind] += 1
                if kind == HEADERS:
                    self.headers.append(payload)
                if kind == HEADERS and (status := STATUS.search(payload)):
                    self.statuses.append(int(status[1]))
                self.num_refused += kind == RST_STREAM and int.from_bytes(payload, "big") == REFUSED_STREAM
        self.closed.set()


@asynccontextmanager
async def connected(
    address: str, *, reads: bool = True, opened: Callable[[], Awaitable[Streams]] | None = None
) -> AsyncIterator[Connection]:
    """A connection after the preface and the settings. reads: whether it has room for any message of an answer. opened:
    gives the streams, in clear to the address if it is not given.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await (asyncio.open_connection(host, int(port)) if opened is None else opened())
    writer.write(PREFACE + frame(SETTINGS, 0, 0, b"" if reads else NO_WINDOW) + frame(SETTINGS, ACK, 0))
    connection = Connection(reader, writer)
    listening = asyncio.create_task(connection.listen())
    try:
        yield connection
    finally:
        listening.cancel()
        writer.close()

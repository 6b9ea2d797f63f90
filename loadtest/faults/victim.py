"""Whom an attack is made on, and what it hears."""

import asyncio
import re
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import grpc as rpc
from grpc import aio

from loadtest.faults import raw_http2
from loadtest.faults.internals import internals

CLOSED, SILENT = "closed", "silent"
AT_ONCE = 16
PATIENCE_S = 90.0
"""Longest wait for the server to end what has no end."""
_NARROW_BYTES = 4_096
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n(?:[^\r\n]+\r\n)*?content-length: (\d+)\r\n(?:[^\r\n]+\r\n)*\r\n")


@dataclass(slots=True)
class Heard:
    """codes: how often each answer. leaks: what was said that must not be, at most some of it."""

    codes: Counter[str] = field(default_factory=Counter)
    leaks: list[str] = field(default_factory=list)

    def add(self, code: str, text: str = "", given: bytes = b"") -> None:
        """One answer."""
        self.codes[code] += 1
        if len(self.leaks) < 9 and (said := internals(text, given)):
            self.leaks.append(f"{code}: {said!r} in {text[:200]!r}")


@dataclass(frozen=True, slots=True)
class Victim:
    """Where a server listens, and how often an attack is made. certificate: the server's, a PEM file, where it speaks
    TLS.
    """

    grpc: str
    http: str
    count: int
    certificate: Path | None = None

    async def open(self, address: str, *, in_clear: bool = False, has_room: bool = True) -> raw_http2.Streams:
        """A connection to one of the addresses. in_clear: before any TLS. has_room: for more than a few KB that nobody
        has read.
        """
        host, _, port = address.rpartition(":")
        tls = None if in_clear or self.certificate is None else ssl.create_default_context(cafile=self.certificate)
        if tls is not None and address == self.grpc:
            tls.set_alpn_protocols(["h2"])
        if has_room:
            return await asyncio.open_connection(host, int(port), ssl=tls)
        narrow = socket.socket()
        narrow.setblocking(False)
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW_BYTES)
        await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
        name = None if tls is None else host
        return await asyncio.open_connection(sock=narrow, ssl=tls, server_hostname=name, limit=_NARROW_BYTES)

    def open_http2(self, *, reads: bool = True) -> AbstractAsyncContextManager[raw_http2.Connection]:
        """A connection for frames of HTTP/2. reads: see `raw_http2.connected`."""
        return raw_http2.connected(self.grpc, reads=reads, opened=lambda: self.open(self.grpc))

    def channel(self) -> aio.Channel:
        """For calls of gRPC."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.certificate is None:
            return aio.insecure_channel(self.grpc, options=options)
        credentials = rpc.ssl_channel_credentials(self.certificate.read_bytes())
        return aio.secure_channel(self.grpc, credentials, options)


Attack = Callable[[Victim, Heard], Awaitable[None]]


async def at_once(work: Callable[[int], Awaitable[None]], count: int, most: int = AT_ONCE) -> None:
    """Do work for each number, so many of them at a time."""
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(one_after_the_other() for _ in range(min(most, count))))


async def answer(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Status and body of the next answer over HTTP, or that there is none."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            found = _ANSWER.match(head)
            if found is None:
                return head[9:12].decode(errors="replace"), head.decode("latin-1")
            return found[1].decode(), (await reader.readexactly(int(found[2]))).decode("utf-8", "replace")
    except TimeoutError:
        return SILENT, ""
    except (asyncio.IncompleteReadError, ConnectionError):
        return CLOSED, ""


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that comes."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


def note_raw(heard: Heard, written: bytes) -> None:
    """What a connection was told before it was closed."""
    found = _ANSWER.match(written)
    heard.add(found[1].decode() if found else CLOSED, written.decode("latin-1") if found else "")

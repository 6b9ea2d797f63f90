"""A loopback TCP proxy that makes the server behind it slow: late replies, few bytes per second, reset connections."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_CHUNK = 1 << 16
_CHUNKS_UNDER_WAY = 256
"""Chunks of at most 64 KiB that may wait in one direction of a connection: 16 MiB, then the sender waits."""
_PIECES_PER_SECOND = 20
_CALL_S = 10.0
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, with no time to linger: closing sends RST."""


class SlowProxy:
    """`with SlowProxy(server.port) as proxy: ...`; clients connect to `proxy.url`. The settings may change at any time.

    delay_s: each reply arrives this much later; replies wait side by side, so that throughput stays.
    bytes_per_second: bound of each connection in each direction; None for no bound.
    """

    def __init__(self, port: int, *, delay_s: float = 0.0, bytes_per_second: float | None = None) -> None:
        self.delay_s = delay_s
        self.bytes_per_second = bytes_per_second
        self.port = 0
        self._behind = port
        self._passing = {False: asyncio.Event(), True: asyncio.Event()}
        """Of requests, and of replies."""
        for passing in self._passing.values():
            passing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._call(self._listen())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """For a server that speaks without TLS or password; others: build theirs with `port`."""
        return f"redis://{HOST}:{self.port}/0"

    def drop(self) -> None:
        """Reset every open connection; new ones are welcome."""
        self._call(self._drop())

    def stall(self, *, replies: bool, requests: bool) -> None:
        """Pass on no byte of these directions from now on; connections stay, and nobody is told."""
        self._call(self._pass_on(not requests, not replies))

    def resume(self) -> None:
        """Pass on what has waited, and what comes."""
        self._call(self._pass_on(requests=True, replies=True))

    async def _pass_on(self, requests: bool, replies: bool) -> None:
        for passing, event in ((requests, self._passing[False]), (replies, self._passing[True])):
            if passing:
                event.set()
            else:
                event.clear()

    def close(self) -> None:
        """Reset every connection and end the thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()

    def _call(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._connect, HOST, 0)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        await self._drop()

    async def _drop(self) -> None:
        for task, writer in self._connections.items():
            with contextlib.suppress(OSError):  # closed already: the client was quicker
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until either side closes. A server that is down looks like one that closes at once."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        server_writer: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            server_reader, server_writer = await asyncio.open_connection(HOST, self._behind)
            pumps = [
                asyncio.create_task(self._pump(reader, server_writer, replies=False)),
                asyncio.create_task(self._pump(server_reader, writer, replies=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):
            pass  # a server that is down, or `drop`
        finally:
            sides = [side for side in (writer, server_writer) if side is not None]
            for side in sides:
                side.transport.abort()
            for pump in pumps:
                pump.cancel()
            # Sockets close a moment after `abort`: who calls `drop` finds them closed.
            with contextlib.suppress(asyncio.CancelledError):  # `drop` of one that was closing already
                await asyncio.gather(*pumps, *(side.wait_closed() for side in sides), return_exceptions=True)
            del self._connections[task]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        """Carry one direction until its sender closes and all has been passed on."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_UNDER_WAY)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive(reader, under_way, replies=replies))
            tasks.create_task(self._send(under_way, writer, self._passing[replies]))

    async def _receive(
        self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes]], *, replies: bool
    ) -> None:
        """Note of every chunk when it is due; an empty one is the end."""
        chunk = b"-"
        while chunk:
            chunk = await reader.read(_CHUNK)
            due = self._loop.time() + (self.delay_s if replies else 0.0)
            await under_way.put((due, chunk))

    async def _send(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, passing: asyncio.Event
    ) -> None:
        """Pass on what is due, in pieces that take a twentieth of a second each where bytes are bounded."""
        while True:
            due, chunk = await under_way.get()
            if not chunk:
                return
            await asyncio.sleep(due - self._loop.time())
            while chunk:
                rate = self.bytes_per_second
                size = len(chunk) if rate is None else max(1, int(rate / _PIECES_PER_SECOND))
                piece, chunk = chunk[:size], chunk[size:]
                if rate is not None:
                    await asyncio.sleep(len(piece) / rate)
                await passing.wait()
                writer.write(piece)
                await writer.drain()

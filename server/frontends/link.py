"""A ZeroMQ socket on the event loop: whatever has come is taken with one wake-up.

`zmq.asyncio` makes a future and a turn of the loop of every message; this calls a function.
"""

import asyncio
from collections.abc import Callable, Sequence

import zmq

MOST_AT_ONCE = 256
"""Messages that are taken before others have a turn on the loop."""
MOST_WAITING = 1_024
"""Messages that wait for a process that does not read; what is more is dropped."""


class Link:
    """Lives on the event loop that it is made on."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        kind: int,
        receive: Callable[[Sequence[bytes]], None],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """kind: zmq.ROUTER or zmq.DEALER. receive: is called with the frames of each message."""
        self.socket = context.socket(kind)
        self.socket.set_hwm(most_waiting)
        self.socket.linger = 0
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket.FD, self._take)
        self._waits = False

    def send(self, *frames: bytes) -> bool:
        """False if it was dropped."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._look_again()
        return True

    def close(self) -> None:
        """Drop what waits."""
        if not self.socket.closed:
            self._loop.remove_reader(self.socket.FD)
            self.socket.close()

    def _look_again(self) -> None:
        """The descriptor tells of a change once, and whatever one does with the socket may take note of it."""
        events = self.socket.get(zmq.EVENTS)
        assert isinstance(events, int)
        if events & zmq.POLLIN and not self._waits:
            self._waits = True
            self._loop.call_soon(self._take)

    def _take(self) -> None:
        self._waits = False
        for _ in range(MOST_AT_ONCE):
            if self.socket.closed:
                return
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._receive(frames)
        self._look_again()

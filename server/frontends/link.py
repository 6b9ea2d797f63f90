"""A ZeroMQ socket on the event loop: messages travel together, with one wake-up for many on either side.

`zmq.asyncio` makes a future and a turn of the loop of every message; this calls a function. To wake the socket's own
thread costs more than all else, so what is sent in one turn of the loop to one peer is one message of several frames.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

MOST_AT_ONCE = 256
"""Bundles of messages that are taken before others have a turn on the loop."""
MOST_WAITING = 1_024
"""Bundles that wait for a process that does not read; what is more is dropped."""

Peer = tuple[bytes, ...]
"""The name of one of several, for a ROUTER; nothing for a DEALER, which has one."""


class Link:
    """Lives on the event loop that it is made on."""

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        kind: int,
        receive: Callable[[Sequence[bytes]], None],
        most_waiting: int = MOST_WAITING,
    ) -> None:
        """kind: zmq.ROUTER or zmq.DEALER. receive: is called with what came at once, behind the name of the peer where
        there are several.
        """
        self.socket = context.socket(kind)
        self.socket.set_hwm(most_waiting)
        self.socket.linger = 0
        self._receive = receive
        self._outgoing: dict[Peer, list[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket.FD, self._take)
        self._waits = False

    @property
    def is_full(self) -> bool:
        """Whether what is sent would be dropped."""
        return not self._is(zmq.POLLOUT)

    def send(self, message: bytes, *peer: bytes) -> None:
        """Send a message with all others of this turn of the loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.setdefault(peer, []).append(message)

    def close(self) -> None:
        """Drop what waits."""
        if not self.socket.closed:
            self._loop.remove_reader(self.socket.FD)
            self.socket.close()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        if self.socket.closed:
            return
        for peer, messages in outgoing.items():
            with suppress(zmq.Again):
                self.socket.send_multipart((*peer, *messages), zmq.NOBLOCK)
        self._look_again()

    def _look_again(self) -> None:
        """The descriptor tells of a change once, and whatever one does with the socket may take note of it."""
        if not self._waits and self._is(zmq.POLLIN):
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

    def _is(self, state: int) -> bool:
        events = self.socket.get(zmq.EVENTS)
        assert isinstance(events, int)
        return bool(events & state)

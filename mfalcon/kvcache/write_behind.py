"""Offload to Redis behind the requests' backs: bounded, droppable, counted, never awaited by a request.

Keeps the newest state of a user while it waits. Only the chunks that Redis lacks are written: of a state that grew by
an event, the last one. Each node of a cluster is written to by itself, one user at a time: a slow one delays its own
users alone.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, Protocol

from mfalcon.errors import StorageUnavailable
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.chunk import Layout
from mfalcon.kvcache.tier import S
from mfalcon.metrics import StateMetrics

_log = logging.getLogger(__name__)

_REMEMBERED_USERS = 200_000
_MOST_WRITERS = 16
"""Nodes that are written to at once, each of which takes a connection."""


class RemoteStates(Protocol):
    """Where states are written to: `RedisStates`."""

    @property
    def layout(self) -> Layout:
        """Of its chunks."""
        ...

    def available(self, user: bytes) -> bool:
        """False while the user's node is not tried."""
        ...

    def node(self, user: bytes) -> str:
        """The node that holds the user's chunks."""
        ...

    def num_chunks(self, num_events: int) -> int:
        """Chunks of so many events."""
        ...

    def pack(self, history: History, start: int, first: int, stop: int, payload: memoryview) -> bytes:
        """The chunk of history[first:stop] in the window that begins at `start`. Any thread may call it."""
        ...

    async def write(self, history: History, number: int, chunk: bytes, timeout_s: float) -> bool:
        """Write one chunk; False if the user's log has ended. Raises StorageUnavailable."""
        ...

    async def touch(self, user: bytes, num_chunks: int, timeout_s: float) -> None:
        """Let the first chunks live on. Raises StorageUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[S]):
    """The state of history[start:], and the node that its user's chunks are on."""

    history: History
    start: int
    state: S
    node: str


@dataclass(frozen=True, slots=True)
class _Writing:
    """What writes a user's state, and the node that it writes to."""

    node: str
    task: "asyncio.Task[None]"


@dataclass(frozen=True, slots=True)
class _Stored:
    """Redis holds good chunks of [start, stop) of the history that hashes to link at stop."""

    generation: bytes
    start: int
    stop: int
    link: bytes


class WriteBehind(Generic[S]):
    """Writes what it is offered when it can. Lives on the event loop, but `offer` may be called by any thread.

    encode: (state, first event, last event) of the window -> payload; runs in one of `workers`. budget_bytes: of states
    that may wait.
    """

    def __init__(
        self,
        states: RemoteStates,
        encode: Callable[[S, int, int], memoryview],
        tombstones: Tombstones,
        metrics: StateMetrics,
        workers: Executor,
        *,
        budget_bytes: int,
        timeout_s: float,
    ) -> None:
        self._states = states
        self._encode = encode
        self._tombstones = tombstones
        self._metrics = metrics
        self._workers = workers
        self._budget = budget_bytes
        self._timeout_s = timeout_s
        self._waiting: OrderedDict[bytes, _Waiting[S]] = OrderedDict()
        self._num_bytes = 0
        self._stored: OrderedDict[bytes, _Stored] = OrderedDict()
        self._writing: dict[bytes, _Writing] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.paused = False
        """True while Redis is over its byte budget: nothing is written."""

    def start(self) -> None:
        """Begin to write."""
        self._loop = asyncio.get_running_loop()

    async def close(self, drain_s: float = 0.0) -> None:
        """Write what waits, for `drain_s` at most, and drop the rest."""
        if self._loop is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        self._closed = True
        self._drop_all("closing")
        tasks = [writing.task for writing in self._writing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def offer(self, history: History, start: int, state: S) -> None:
        """Have a state written some time soon, or never. Any thread; returns at once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so are we
                self._loop.call_soon_threadsafe(self._enqueue, history, start, state)

    def stored(self, history: History, start: int, stop: int) -> None:
        """Note that Redis holds history[start:stop]; its chunks shall live on."""
        self._remember(history.user, _Stored(history.generation, start, stop, history.link(stop)))

    def drop(self, user: bytes) -> None:
        """Drop what waits for a user."""
        self._take(user)
        self._stored.pop(user, None)

    async def delete(self, user: bytes) -> None:
        """Drop what waits for a user and wait for what is being written."""
        self.drop(user)
        if user in self._writing:
            await asyncio.wait((self._writing[user].task,))

    async def idle(self) -> None:
        """Return when nothing waits or is being written."""
        await self._idle.wait()

    def _enqueue(self, history: History, start: int, state: S) -> None:
        user = history.user
        self._take(user)
        if self._closed:
            return
        self._waiting[user] = waiting = _Waiting(history, start, state, self._states.node(user))
        self._num_bytes += state.num_bytes
        while self._num_bytes > self._budget:
            self._take(next(iter(self._waiting)))
            self._metrics.dropped.labels("full").inc()
        self._metrics.waiting.set(len(self._waiting))
        if user in self._waiting and self._may_write(waiting):  # then nothing older waits for its node
            self._begin(user)

    def _take(self, user: bytes) -> _Waiting[S] | None:
        waiting = self._waiting.pop(user, None)
        if waiting is not None:
            self._num_bytes -= waiting.state.num_bytes
            self._metrics.waiting.set(len(self._waiting))
        return waiting

    def _drop_all(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc(len(self._waiting))
        self._waiting.clear()
        self._num_bytes = 0
        self._metrics.waiting.set(0)

    def _may_write(self, waiting: _Waiting[S]) -> bool:
        """Whether nothing is being written to the node, nor of the user, wherever that was when it began."""
        if len(self._writing) >= _MOST_WRITERS or waiting.history.user in self._writing:
            return False
        return all(writing.node != waiting.node for writing in self._writing.values())

    def _begin(self, user: bytes) -> None:
        waiting = self._take(user)
        assert waiting is not None
        task = asyncio.create_task(self._write_one(waiting), name="write-behind")
        self._writing[user] = _Writing(waiting.node, task)
        self._idle.clear()
        task.add_done_callback(lambda _: self._ended(user))

    def _ended(self, user: bytes) -> None:
        """Go on with what has waited longest for a node that is free now."""
        del self._writing[user]
        following = next((other for other, waiting in self._waiting.items() if self._may_write(waiting)), None)
        if following is not None:
            self._begin(following)
        elif not self._writing:
            self._idle.set()

    async def _write_one(self, waiting: _Waiting[S]) -> None:
        try:
            reason = await self._write(waiting)
        except Exception:  # noqa: BLE001 (the task's edge: the next state is written all the same)
            _log.exception("a state could not be written")
            reason = "failed"
        if reason is not None:
            self._metrics.dropped.labels(reason).inc()

    async def _write(self, waiting: _Waiting[S]) -> str | None:
        """Write the chunks that Redis lacks; returns why not, or None."""
        history, start = waiting.history, waiting.start
        if self.paused:
            return "budget"
        if not self._states.available(history.user):
            return "unavailable"
        size = self._states.layout.events_per_chunk
        num_chunks, stored = self._states.num_chunks(len(history) - start), self._stored_stop(history, start)
        first_dirty = num_chunks if stored == len(history) else (stored - start) // size
        try:
            for number in range(first_dirty, num_chunks):
                if history.generation in self._tombstones:
                    return "deleted"
                first, stop = start + number * size, min(start + (number + 1) * size, len(history))
                running = asyncio.get_running_loop()
                chunk = await running.run_in_executor(self._workers, self._chunk, waiting, first, stop)
                if not await self._states.write(history, number, chunk, self._timeout_s):
                    self._stored.pop(history.user, None)
                    return "deleted"
                self.stored(history, start, stop)
            await self._states.touch(history.user, first_dirty, self._timeout_s)
        except StorageUnavailable as error:
            self._stored.pop(history.user, None)
            return "unavailable" if error.may_be_done else "refused"
        return None

    def _chunk(self, waiting: _Waiting[S], first: int, stop: int) -> bytes:
        history, start = waiting.history, waiting.start
        payload = self._encode(waiting.state, first - start, stop - start)
        return self._states.pack(history, start, first, stop, payload)

    def _stored_stop(self, history: History, start: int) -> int:
        """The event up to which Redis should hold history[start:] already."""
        stored = self._stored.get(history.user)
        if stored is None or stored.generation != history.generation or stored.start != start:
            return start
        if not start <= stored.stop <= len(history) or stored.link != history.link(stored.stop):
            return start
        return stored.stop

    def _remember(self, user: bytes, stored: _Stored) -> None:
        self._stored[user] = stored
        self._stored.move_to_end(user)
        if len(self._stored) > _REMEMBERED_USERS:
            self._stored.popitem(last=False)

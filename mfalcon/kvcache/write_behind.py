"""Offload to Redis behind the requests' backs: bounded, droppable, counted, never awaited by a request.

Only the chunks that Redis lacks are written: of a state that grew by an event, the last one. Each node of a cluster is
written to by itself, one user at a time: a slow one delays its own users alone.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

from cachetools import LRUCache

from mfalcon.errors import StorageUnavailable
from mfalcon.history.chain import num_equal
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.item_rows import NO_TAGS, link_of
from mfalcon.kvcache.offload_queue import Offer, OffloadQueue
from mfalcon.kvcache.remote import RedisStates
from mfalcon.metrics.states import StateMetrics

_log = logging.getLogger(__name__)

_REMEMBERED_USERS = 200_000
_MOST_WRITERS = 16
"""Nodes that are written to at once, each of which takes a connection."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """What writes a user's state, and the node that it writes to."""

    node: str
    task: "asyncio.Task[bool]"


@dataclass(frozen=True, slots=True)
class _Stored:
    """Redis holds good chunks of [start, stop) of the history that hashes to link at stop, and to `chunks` at the end
    of each whole one.
    """

    generation: bytes
    start: int
    stop: int
    link: bytes
    chunks: bytes


class WriteBehind:
    """Writes what it is offered when it can. Lives on the event loop, but `offer` may be called by any thread.

    workers: where states become chunks. budget_bytes: of states that may wait.
    """

    def __init__(
        self,
        states: RedisStates,
        tombstones: Tombstones,
        metrics: StateMetrics,
        workers: Executor,
        *,
        budget_bytes: int,
        timeout_s: float,
    ) -> None:
        self._states = states
        self._tombstones = tombstones
        self._metrics = metrics
        self._workers = workers
        self._timeout_s = timeout_s
        self._queue = OffloadQueue(budget_bytes)
        self._stored: LRUCache[bytes, _Stored] = LRUCache(_REMEMBERED_USERS)
        self._writing: dict[bytes, _Writing] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.num_bytes = 0
        """Written so far."""
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
        self._metrics.dropped.labels("closing").inc(self._queue.delete(None))
        self._metrics.waiting.set(0)
        tasks = [writing.task for writing in self._writing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def offer(self, offer: Offer) -> None:
        """Have a state written some time soon, or never. Any thread; returns at once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so are we
                self._loop.call_soon_threadsafe(self._enqueue, offer)

    def stored(self, history: History, start: int, stop: int, tags: bytes = NO_TAGS) -> None:
        """Note that Redis holds history[start:stop], made with item rows of these tags; its chunks shall live on."""
        chunks = self._whole_chunks(history, start, stop, tags)
        link = link_of(history, start, stop, tags)
        self._stored[history.user] = _Stored(history.generation, start, stop, link, chunks)

    def drop(self, user: bytes) -> None:
        """Drop what waits for a user."""
        self._queue.delete(user)
        self._metrics.waiting.set(len(self._queue))
        self._stored.pop(user, None)

    async def delete(self, user: bytes) -> None:
        """Drop what waits for a user and wait for what is being written."""
        self.drop(user)
        if user in self._writing:
            await asyncio.wait((self._writing[user].task,))

    async def hand_over(self, offers: Iterable[Offer], most_bytes: int) -> int:
        """Have Redis hold these, in their order, until so many bytes were written; returns how many it holds then.

        What Redis should hold it is asked for: what was used last here was used least there, and is what it evicts
        first. What waits to be written goes on beside. Of a node that does not answer nothing is waited for again.
        """
        num_held, most = 0, self.num_bytes + most_bytes
        for offer in offers:
            while not self._may_write(offer):
                tasks = [writing.task for writing in self._writing.values()]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._closed or self.paused or self.num_bytes >= most:
                break
            task = self._begin(offer, asks=True)
            await asyncio.wait((task,))
            num_held += not task.cancelled() and task.result()  # `close` ends what is being written
        await self._idle.wait()
        return num_held

    async def idle(self) -> None:
        """Return when nothing waits or is being written."""
        await self._idle.wait()

    def _enqueue(self, offer: Offer) -> None:
        if self._closed:
            return
        self._queue.delete(offer.history.user)  # an older window is of no more use
        self._metrics.dropped.labels("full").inc(self._queue.put(offer))
        self._metrics.waiting.set(len(self._queue))
        if self._may_write(offer):  # else nothing that waits may be, as when this was asked last
            self._write_next()

    def _write_next(self) -> None:
        """Begin with what has waited longest for a node that is free."""
        offer = self._queue.take(self._may_write)
        self._metrics.waiting.set(len(self._queue))
        if offer is not None:
            self._begin(offer)
        elif not self._writing:
            self._idle.set()

    def _begin(self, offer: Offer, *, asks: bool = False) -> "asyncio.Task[bool]":
        user = offer.history.user
        task = asyncio.create_task(self._write_one(offer, asks=asks), name="write-behind")
        self._writing[user] = _Writing(self._states.node(user), task)
        self._idle.clear()
        task.add_done_callback(lambda _: self._ended(user))
        return task

    def _may_write(self, offer: Offer) -> bool:
        """Whether nothing is being written to the node, nor of the user, wherever that was when it began."""
        user = offer.history.user
        if len(self._writing) >= _MOST_WRITERS or user in self._writing:
            return False
        return self._states.node(user) not in (writing.node for writing in self._writing.values())

    def _ended(self, user: bytes) -> None:
        del self._writing[user]
        self._write_next()

    async def _write_one(self, offer: Offer, *, asks: bool) -> bool:
        try:
            reason = await self._write(offer, asks=asks)
        except Exception:  # noqa: BLE001 (the task's edge: the next state is written all the same)
            _log.exception("a state could not be written")
            reason = "failed"
        if reason is not None:
            self._metrics.dropped.labels(reason).inc()
        return reason is None

    async def _write(self, offer: Offer, *, asks: bool) -> str | None:
        """Write the chunks that Redis lacks; returns why not, or None. asks: which those are, and does not rely on what
        was written once.
        """
        history, start, states = offer.history, offer.start, self._states
        if self.paused:
            return "budget"
        if not states.available(history.user):
            return "unavailable"
        size, loop = states.layout.events_per_chunk, asyncio.get_running_loop()
        num_chunks, first_dirty = states.num_chunks(len(history) - start), self._first_dirty(offer)
        try:
            if asks:
                first_dirty = await states.touch(history.user, first_dirty, self._timeout_s)
            for number in range(first_dirty, num_chunks):
                if history.generation in self._tombstones:
                    return "deleted"
                stop = min(start + (number + 1) * size, len(history))
                chunk = await loop.run_in_executor(
                    self._workers, states.pack, history, start, number, offer.state, offer.tags
                )
                if not await states.write(history, number, chunk, self._timeout_s):
                    self._stored.pop(history.user, None)
                    return "deleted"
                self.num_bytes += len(chunk)
                self.stored(history, start, stop, offer.tags)
            if not asks and await states.touch(history.user, first_dirty, self._timeout_s) < first_dirty:
                self._stored.pop(history.user, None)  # evicted: the next write brings all of it
        except StorageUnavailable as error:
            self._stored.pop(history.user, None)
            return "unavailable" if error.may_be_done else "refused"
        return None

    def _first_dirty(self, offer: Offer) -> int:
        """The first chunk of a state that Redis should not hold already."""
        history, start, tags = offer.history, offer.start, offer.tags
        stored, size = self._stored.get(history.user), self._states.layout.events_per_chunk
        if stored is None or stored.generation != history.generation or stored.start != start:
            return 0
        if stored.stop <= len(history) and stored.link == link_of(history, start, stored.stop, tags):
            is_all = stored.stop == len(history)
            return self._states.num_chunks(stored.stop - start) if is_all else (stored.stop - start) // size
        return num_equal(
            stored.chunks, self._whole_chunks(history, start, len(history), tags)
        )  # an event was inserted, say

    def _whole_chunks(self, history: History, start: int, stop: int, tags: bytes) -> bytes:
        """The links at the ends of the whole chunks of history[start:stop]."""
        size = self._states.layout.events_per_chunk
        return b"".join(link_of(history, start, at, tags) for at in range(start + size, stop + 1, size))

"""What the event loop does before the device sees a request: read the event log, and bring the user's KV state up from
Redis if that is the cheaper way. The device thread never waits for a network.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mfalcon.errors import StorageUnavailable
from mfalcon.kv import KVShape, KVState
from mfalcon.kv_codec import decode
from mfalcon.state.decision import Decision
from mfalcon.state.history import History, Reading
from mfalcon.state.host import Entry
from mfalcon.state.key import user_hash
from mfalcon.state.metrics import StateMetrics
from mfalcon.state.predictor import Predictor, Situation
from mfalcon.state.redis_client import Reply
from mfalcon.state.redis_states import RedisStates
from mfalcon.state.store import StateStore
from mfalcon.state.write_behind import WriteBehind
from mfalcon.types import Events

SHORTEST_WAIT_S = 0.005
_WAIT_SHARE = 0.25
"""Of the time that a request has left, for one call to Redis."""
_MOST_GUESSED_CHUNKS = 64


class EventLog(Protocol):
    """The truth: every user's acknowledged events. Owned by the event loop."""

    async def read(self, user_id: str, timeout_s: float) -> Reading:
        """The user's history. StorageUnavailable when it cannot be read."""
        ...

    async def append(self, user_id: str, events: Events, expected_len: int | None, deadline: float | None) -> int:
        """Acknowledge events and return the new length. LengthMismatch, InvalidInput, StorageUnavailable."""
        ...

    async def delete(self, user_id: str, deadline: float | None) -> bytes:
        """Erase the user's events and return the generation that ended. StorageUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a job takes to the device.

    fetched: a state from Redis, to be verified like any other. decision: how that was decided, None if there was
    nothing to decide. seconds: what it took.
    """

    history: History
    stale: bool = False
    fetched: Entry[KVState] | None = None
    decision: Decision | None = None
    seconds: float = 0.0


class Coverage:
    """How much of a wanted state Redis has been holding lately: a fraction that moves with each fetch.

    Never below a floor, so that a Redis that was empty is asked again.
    """

    def __init__(self, floor: float = 0.25) -> None:
        self._floor = floor
        self.fraction = 1.0

    def observe(self, fraction: float) -> None:
        """A fetch brought so much of what it asked for."""
        self.fraction = max(self._floor, 0.8 * self.fraction + 0.2 * fraction)


@dataclass(frozen=True, slots=True)
class LowerTier:
    """Redis as a tier of states: reads, write-behind, and what a fetched payload becomes."""

    states: RedisStates
    writes: WriteBehind[KVState]
    shape: KVShape


class Recall:
    """Answers `open` for each request. window_start: of a history of so many events. num_queued: jobs that wait."""

    def __init__(
        self,
        log: EventLog,
        store: StateStore[KVState],
        predictor: Predictor,
        metrics: StateMetrics,
        window_start: Callable[[int], int],
        num_queued: Callable[[], int],
        longest_wait_s: float,
        lower: LowerTier | None = None,
        guess: bool = False,
    ) -> None:
        self._log = log
        self._store = store
        self._predictor = predictor
        self._metrics = metrics
        self._window_start = window_start
        self._num_queued = num_queued
        self._longest_wait_s = longest_wait_s
        self._lower = lower
        self._guess = guess
        self._coverage = Coverage()
        self._usual_events = 0.0

    async def open(self, user_id: str, deadline: float | None) -> Recalled:
        """The user's history, verified, and perhaps a state of it. Raises StorageUnavailable without a history.

        Where the log is a round trip away and a fetch is likely, both leave together, on two connections: a large
        state cannot delay the log.
        """
        began = time.monotonic()
        guessed = self._guess_fetch(user_id, deadline)
        try:
            reading = await self._log.read(user_id, self._patience(deadline))
            fetched, decision = await self._fetch(reading.history, deadline, guessed)
        finally:
            if guessed is not None and not guessed.done():
                guessed.cancel()
        return Recalled(reading.history, reading.stale, fetched, decision, time.monotonic() - began)

    def _patience(self, deadline: float | None) -> float:
        """Seconds that one call to Redis may take: a share of what the request has left, 5 ms at least."""
        if deadline is None:
            return self._longest_wait_s
        return min(self._longest_wait_s, max(SHORTEST_WAIT_S, _WAIT_SHARE * (deadline - time.monotonic())))

    def _guess_fetch(self, user_id: str, deadline: float | None) -> "asyncio.Task[tuple[list[Reply], float]] | None":
        """Begin to fetch before the history is known, if that is likely to be the decision."""
        if self._lower is None or not self._guess:
            return None
        user, layout = user_hash(user_id), self._lower.states.layout
        num_events = round(self._usual_events)
        num_tokens = num_events * layout.tokens_per_event
        if not num_events or self._store.holds(user) or not self._lower.states.available(user):
            return None
        if not self._predictor.expected_fetch_wins(num_tokens, layout.payload_bytes(num_events)):
            return None
        num_chunks = min(_MOST_GUESSED_CHUNKS, self._lower.states.num_chunks(2 * num_events))
        return asyncio.create_task(self._ask(user, num_chunks, self._patience(deadline)))

    async def _ask(self, user: bytes, num_chunks: int, timeout_s: float) -> tuple[list[Reply], float]:
        """Chunks as they are, none if Redis cannot be asked, and the seconds it took."""
        assert self._lower is not None
        began = time.monotonic()
        with contextlib.suppress(StorageUnavailable):
            values = await self._lower.states.fetch(user, num_chunks, timeout_s)
            seconds = time.monotonic() - began
            self._predictor.fetch.observe(sum(len(value) for value in values if value is not None), seconds)
            return values, seconds
        return [], time.monotonic() - began

    async def _fetch(
        self, history: History, deadline: float | None, guessed: "asyncio.Task[tuple[list[Reply], float]] | None"
    ) -> tuple[Entry[KVState] | None, Decision | None]:
        """The decision, and what a fetch brought."""
        if self._lower is None:
            return None, None
        states = self._lower.states
        start = max(self._window_start(len(history)), history.base)
        num_events, num_on_host = len(history) - start, self._store.peek(history, start)
        if num_events == num_on_host:
            return None, None
        self._usual_events = 0.9 * self._usual_events + 0.1 * num_events if self._usual_events else num_events
        per_event, covered = states.layout.tokens_per_event, round(self._coverage.fraction * num_events)
        decision = self._predictor.decide(
            Situation(
                history_tokens=num_events * per_event,
                host_tokens=num_on_host * per_event,
                redis_tokens=covered * per_event if states.available(history.user) else None,
                fetch_bytes=states.layout.payload_bytes(covered),
                queued_jobs=self._num_queued(),
                time_left=None if deadline is None else deadline - time.monotonic(),
            )
        )
        self._metrics.decisions.labels(decision.choice, decision.reason).inc()
        if decision.choice == "recompute":
            return None, decision
        wanted = states.num_chunks(num_events)
        if guessed is not None:
            values, _ = await guessed
        else:
            values, _ = await self._ask(history.user, wanted, self._patience(deadline))
        entry = await asyncio.to_thread(self._decode, values[:wanted], history, start) if values else None
        stop = entry.key.stop if entry is not None else start
        self._coverage.observe((stop - start) / num_events)
        if entry is not None:
            self._lower.writes.stored(history, start, stop)
            if stop == len(history):
                self._lower.writes.offer(history, start, entry.state)  # nothing to write: its chunks live on
        return entry, decision

    def _decode(self, values: Sequence[Reply], history: History, start: int) -> Entry[KVState] | None:
        """A state from the good chunks, in a worker thread."""
        assert self._lower is not None
        began = time.monotonic()
        run = self._lower.states.verify(values, history, start)
        if not run.payloads:
            return None
        capacity = (len(history) - start) * self._lower.states.layout.tokens_per_event
        state = decode(run.payloads, self._lower.shape, self._lower.states.layout.dtype, capacity)
        num_bytes = sum(payload.nbytes for payload, _ in run.payloads)
        self._predictor.decode.observe(num_bytes, time.monotonic() - began)
        return Entry(self._store.key(history, start, run.stop), state)

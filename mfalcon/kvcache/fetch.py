"""What the event loop does before the device sees a request: read the event log, and bring the user's KV state up from
Redis if that is the cheaper way. The device thread never waits for a network.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mfalcon.errors import Overloaded, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History, Reading
from mfalcon.history.log import EventLog
from mfalcon.kvcache.cache import KVCache, RemoteTier
from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Decision
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.planner import Predictor, Situation
from mfalcon.kvcache.remote import RedisStates
from mfalcon.kvcache.tier import Entry
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import Reply
from mfalcon.window import WindowRule

_log = logging.getLogger(__name__)

SHORTEST_WAIT_S = 0.005
_WAIT_SHARE = 0.25
"""Of the time that a request has left, for Redis."""
_MOST_GUESSED_CHUNKS = 64
_LEARN_SECONDS = 1.0
_NEARLY_ALL = 0.75


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a job takes to the device.

    fetched: a state from Redis, to be verified like any other. decision: how that was decided, None if there was
    nothing to decide. seconds: what it took, log_seconds of it to read the log.
    """

    history: History
    stale: bool = False
    fetched: Entry | None = None
    decision: Decision | None = None
    seconds: float = 0.0
    log_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Waits:
    """What a request waits for anyhow, and how long it may. device: behind what is queued. until: when waiting for
    Redis must end.
    """

    device: Estimate
    deadline: float | None
    until: float

    @property
    def for_redis(self) -> float:
        """Seconds left, 5 ms at least."""
        return max(SHORTEST_WAIT_S, self.until - time.monotonic())


class LogReader:
    """Answers `open` for each request of a model that has no KV states: all that it needs is the history.

    longest_wait_s: for Redis.
    """

    def __init__(self, log: EventLog, longest_wait_s: float) -> None:
        self._log = log
        self._longest_wait_s = longest_wait_s

    async def read(self, user_id: str, deadline: float | None) -> Reading:
        """The user's history, for several models at once. Raises StorageUnavailable without one."""
        return await self._log.read(user_id, self._patience(deadline))

    async def open(
        self,
        user_id: str,
        deadline: float | None,
        wait: Estimate,
        num_recent: int = 0,
        reading: Reading | None = None,
        *,
        log_only: bool = False,
    ) -> Fetched:
        """The user's history, verified. Raises StorageUnavailable without one. The rest is as of `Fetcher.open`."""
        began = time.monotonic()
        reading = reading or await self.read(user_id, deadline)
        seconds = time.monotonic() - began
        return Fetched(reading.history, reading.stale, seconds=seconds, log_seconds=seconds)

    async def close(self) -> None:
        """Nothing is under way."""

    def _patience(self, deadline: float | None) -> float:
        """Seconds that a request may wait for Redis: a share of what it has left, 5 ms at least."""
        if deadline is None:
            return self._longest_wait_s
        return min(self._longest_wait_s, max(SHORTEST_WAIT_S, _WAIT_SHARE * (deadline - time.monotonic())))


class Fetcher(LogReader):
    """The same for a model with KV states. is_shared: whether the log is a round trip away."""

    def __init__(
        self,
        log: EventLog,
        cache: KVCache,
        predictor: Predictor,
        window: WindowRule,
        metrics: StateMetrics,
        longest_wait_s: float,
        *,
        is_shared: bool,
    ) -> None:
        super().__init__(log, longest_wait_s)
        self._cache = cache
        self._remote = cache.remote
        self._predictor = predictor
        self._window = window
        self._metrics = metrics
        self._is_shared = is_shared
        self._usual_events = 0.0
        self._asked_at = 0.0
        self._logged: set[type[Exception]] = set()
        self._asking: dict[bytes, asyncio.Task[list[Reply]]] = {}
        self._bringing: dict[tuple[bytes, bytes], asyncio.Task[Entry | None]] = {}

    async def open(
        self,
        user_id: str,
        deadline: float | None,
        wait: Estimate,
        num_recent: int = 0,
        reading: Reading | None = None,
        *,
        log_only: bool = False,
    ) -> Fetched:
        """The user's history, verified, and perhaps a state of it. Raises StorageUnavailable without a history.

        wait: for the device, behind what is queued. num_recent: events that the request brings itself; where they move
        the window, no state in Redis is of use. reading: the history, if somebody has read it for this request.
        log_only: no state is wanted.

        Where the log is a round trip away and a fetch is likely, both leave together, on two connections: a large
        state cannot delay the log.
        """
        if log_only:
            return await super().open(user_id, deadline, wait, num_recent, reading)
        began = time.monotonic()
        patience = self._patience(deadline)
        guessed = self._guess_fetch(user_id, patience) if reading is None else None
        reading = reading or await self._log.read(user_id, patience)
        log_seconds = time.monotonic() - began
        if reading.stale:  # Redis has had its time
            return Fetched(reading.history, stale=True, seconds=log_seconds, log_seconds=log_seconds)
        length = len(reading.history)
        if self._remote is None or self._window.start(length + num_recent) != self._window.start(length):
            return Fetched(reading.history, seconds=log_seconds, log_seconds=log_seconds)
        waits = Waits(wait, deadline, began + patience)
        fetched, decision = await self._fetch(self._remote, reading.history, waits, guessed)
        return Fetched(reading.history, False, fetched, decision, time.monotonic() - began, log_seconds)

    def _guess_fetch(self, user_id: str, patience: float) -> "asyncio.Task[list[Reply]] | None":
        """Begin to fetch before the history is known, if that is likely to be the decision."""
        if self._remote is None or not self._is_shared or not self._usual_events:
            return None
        user, states = user_hash(user_id), self._remote.states
        num_events = round(self._usual_events)
        num_tokens, num_bytes = num_events * states.layout.tokens_per_event, states.layout.payload_bytes(num_events)
        if self._cache.holds(user) or not states.available(user):
            return None
        if not self._predictor.expected_fetch_wins(num_tokens, num_bytes):
            return None
        most_events = _MOST_GUESSED_CHUNKS * states.layout.events_per_chunk
        return self._ask(states, user, min(2 * num_events, most_events), patience)

    async def close(self) -> None:
        """Let what is being fetched come to its end."""
        under_way = {*self._asking.values(), *self._bringing.values()}
        if under_way:
            await asyncio.wait(under_way)

    async def _fetch(
        self, remote: RemoteTier, history: History, waits: Waits, guessed: "asyncio.Task[list[Reply]] | None"
    ) -> tuple[Entry | None, Decision | None]:
        """The decision, and what a fetch brought."""
        start = self._window.start(len(history), history.base)
        num_events, num_here = len(history) - start, self._cache.peek(history, start)
        if num_events == num_here:
            return None, None
        self._usual_events = 0.9 * self._usual_events + 0.1 * num_events if self._usual_events else num_events
        decision = self._decide(remote.states, history.user, num_events, num_here, waits)
        self._metrics.decisions.labels(decision.choice, decision.reason).inc()
        if decision.choice == "recompute":
            if num_here <= num_events * _NEARLY_ALL:
                self._learn(remote.states, history.user, num_events)
            return None, decision
        key = history.user, history.link(len(history))
        bringing = self._bringing.get(key)
        if bringing is None:
            bringing = asyncio.create_task(self._bring(remote, history, start, waits, guessed))
            self._bringing[key] = bringing
            bringing.add_done_callback(lambda _: self._bringing.pop(key, None))
        decoding = self._predictor.decode.predict(remote.states.layout.payload_bytes(num_events))
        left = waits.for_redis + 2 * decoding.upper
        done, _ = await asyncio.wait((bringing,), timeout=left)  # it may be another request's, with more time
        return bringing.result() if done else None, decision

    def _decide(self, states: RedisStates, user: bytes, num_events: int, num_here: int, waits: Waits) -> Decision:
        is_known = num_here > num_events * _NEARLY_ALL  # what is new to us is new to Redis, as a rule
        in_redis = num_here if is_known else round(self._predictor.coverage.fraction * num_events)
        per_event = states.layout.tokens_per_event
        return self._predictor.decide(
            Situation(
                history_tokens=num_events * per_event,
                host_tokens=num_here * per_event,
                redis_tokens=in_redis * per_event if states.available(user) else None,
                fetch_bytes=states.layout.payload_bytes(in_redis),
                wait=waits.device,
                time_left=None if waits.deadline is None else waits.deadline - time.monotonic(),
                patience=waits.for_redis,
            )
        )

    def _learn(self, states: RedisStates, user: bytes, num_events: int) -> None:
        """Ask Redis beside a request that recomputes, now and then: what is never asked never looks cheap again."""
        if time.monotonic() - self._asked_at > _LEARN_SECONDS and states.available(user):
            asking = self._ask(states, user, num_events, self._longest_wait_s)
            asking.add_done_callback(self._learned)

    def _learned(self, asking: "asyncio.Task[list[Reply]]") -> None:
        if not asking.cancelled() and (values := asking.result()):
            self._predictor.coverage.observe(sum(value is not None for value in values) / len(values))

    def _ask(self, states: RedisStates, user: bytes, num_events: int, timeout_s: float) -> "asyncio.Task[list[Reply]]":
        """The user's chunks of so many events as they are; requests of one user that come together share the answer."""
        asking = self._asking.get(user)
        if asking is None or asking.done():
            asking = asyncio.create_task(self._read_chunks(states, user, num_events, timeout_s))
            self._asking[user] = asking
            asking.add_done_callback(lambda _: self._asking.pop(user, None))
        return asking

    async def _read_chunks(self, states: RedisStates, user: bytes, num_events: int, timeout_s: float) -> list[Reply]:
        """Chunks as they are; none if Redis cannot be asked."""
        self._asked_at = began = time.monotonic()
        try:
            values = await states.fetch(user, states.num_chunks(num_events), timeout_s)
        except StorageUnavailable as error:
            if error.may_be_done:  # it took at least this long
                self._predictor.fetch.observe(states.layout.payload_bytes(num_events), time.monotonic() - began)
            return []
        found = [len(value) for value in values if value is not None]
        self._predictor.fetch.observe(sum(found), time.monotonic() - began)
        return values

    async def _bring(
        self,
        remote: RemoteTier,
        history: History,
        start: int,
        waits: Waits,
        guessed: "asyncio.Task[list[Reply]] | None",
    ) -> Entry | None:
        """What Redis holds of history[start:], as a state; requests for the same history share one."""
        states, num_events = remote.states, len(history) - start
        wanted = states.num_chunks(num_events)
        values = await asyncio.shield(guessed or self._ask(states, history.user, num_events, waits.for_redis))
        if 0 < len(values) < wanted and values[-1] is not None:  # the guess asked for too little
            values = await asyncio.shield(self._ask(states, history.user, num_events, waits.for_redis))
        entry = None
        if any(value is not None for value in values[:1]):
            loop = asyncio.get_running_loop()
            try:
                entry = await loop.run_in_executor(
                    remote.workers, self._decode, states, values[:wanted], history, start
                )
            except Overloaded:
                self._metrics.no_room.inc()
                return None  # which says nothing of what Redis holds
        stop = entry.key.stop if entry is not None else start
        if values:  # an answer
            self._predictor.coverage.observe((stop - start) / num_events)
        if entry is not None:
            remote.writes.stored(history, start, stop, entry.key.tags)
            if stop == len(history):
                remote.writes.offer(
                    Offer(history, start, entry.state, tags=entry.key.tags)
                )  # nothing to write: its chunks live on
        return entry

    def _decode(self, states: RedisStates, values: Sequence[Reply], history: History, start: int) -> Entry | None:
        """A state from the good chunks, in a worker thread. Raises Overloaded."""
        began = time.monotonic()
        try:
            tags = self._cache.rows.tags(history, start)
            run = states.verify(values, history, start, tags)
            if not run.payloads:
                return None
            state = states.state(run, self._cache.host_pool)
        except Overloaded:
            raise
        except Exception as error:  # noqa: BLE001 (the worker's edge: what cannot be decoded is a miss)
            self._undecoded(error)
            return None
        num_bytes = sum(payload.nbytes for payload, _ in run.payloads)
        self._predictor.decode.observe(num_bytes, time.monotonic() - began)
        return Entry(self._cache.key(history, start, run.stop, tags), state)

    def _undecoded(self, error: Exception) -> None:
        """Count chunks that were good and still became no state, and log the first of each cause."""
        self._metrics.rejected.labels("decode").inc()
        if type(error) not in self._logged:
            self._logged.add(type(error))
            _log.error(
                "chunks from Redis could not be decoded and are recomputed; this cause is not logged again: %r",
                error,
                exc_info=error,
            )

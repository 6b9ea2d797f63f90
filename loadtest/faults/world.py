"""Two engines and the Redis that they need, for measuring faults: one keeps its users' states on host, the other can
find them in Redis alone.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self, TypeAlias

import numpy as np

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.slow_proxy import SlowProxy
from mfalcon.backends.choice import REFERENCE
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions, layout_of
from mfalcon.errors import ConfigError, MFalconError, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.redis_log import LogOptions
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE, Append, Events, RankRequest, no_events

Setup: TypeAlias = Literal["states", "refuse", "stale"]
"""What is in Redis: KV states alone; the event log too, ranking refused while it cannot be asked, or ranking stale."""

SETUPS: dict[Setup, str] = {
    "states": "log embedded, states in Redis",
    "refuse": "log and states in Redis, refuse",
    "stale": "log and states in Redis, stale",
}
SHAPE = Shape("faults", num_layers=2, dim=64, num_heads=4)
DEADLINE_S = 1.0
NUM_EVENTS = 600
_NUM_ITEMS = 1_000
_NUM_CANDIDATES = 64
_MICROBATCH = 64
_START_MS = 10**12
_WAIT_S = 20.0
_POLL_S = 0.02
_HOST_BYTES = 1 << 30
_TRIES, _RETRY_S = 20, 0.3
_WARM_UP = 2


@dataclass(slots=True)
class Ranked:
    """Ranks of one kind: how long each took, and what each was answered, known once the oracle has looked.

    waited_seconds: of each that got scores, the time before the device was asked.
    """

    seconds: list[float] = field(default_factory=list)
    waited_seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    answers: list[tuple[Answer, bool]] = field(default_factory=list)
    """With whether the answer said that it is stale."""

    @property
    def max_ms(self) -> float:
        """The longest."""
        return max(self.seconds, default=0.0) * 1e3

    @property
    def p50_ms(self) -> float:
        """The median."""
        return float(np.median(self.seconds)) * 1e3 if self.seconds else 0.0

    def add(self, other: "Ranked") -> None:
        """Ranks of another time."""
        self.seconds += other.seconds
        self.waited_seconds += other.waited_seconds
        self.errors += other.errors
        self.answers += other.answers

    def outcomes(self, checkpoint: Checkpoint) -> Counter[str]:
        """right, stale (right for the history that it names), WRONG, or the name of an error; how often each."""
        errors = score_errors(checkpoint, [answer for answer, _ in self.answers], threads=1)
        counts = Counter(self.errors)
        for answer, is_stale in self.answers:
            counts["WRONG" if errors[answer] > BOUND else "stale" if is_stale else "right"] += 1
        return counts


def fault_checkpoint(seed: int = 0) -> Checkpoint:
    """A random one on which bringing a state from Redis is cheaper than encoding it again."""
    return random_checkpoint(SHAPE, _NUM_ITEMS, seed, max_history=1_024)


def random_events(seed: int, num_events: int = NUM_EVENTS, after_ms: int = _START_MS) -> Events:
    """Seeded events of known items."""
    rng = np.random.default_rng(seed)
    events = np.zeros(num_events, dtype=EVENT_DTYPE)
    events["item_id"] = rng.integers(1, _NUM_ITEMS + 1, num_events)
    events["actions"] = 1 << rng.integers(0, 3, num_events)
    events["value"] = rng.integers(1, 6, num_events)
    events["time_ms"] = after_ms + np.cumsum(rng.integers(0, 10**6, num_events))
    return events


@dataclass(slots=True)
class Person:
    """A user of the measurement, and all that was acknowledged to be theirs."""

    user_id: str
    life: Life

    def request(self, seed: int) -> RankRequest:
        """Candidates drawn by a seed, now."""
        candidates = np.random.default_rng(seed).integers(1, _NUM_ITEMS + 1, _NUM_CANDIDATES)
        return RankRequest(self.user_id, candidates, 0, _START_MS + 10**10, no_events(), {})


async def rank(engine: Engine, person: Person, seed: int, into: Ranked, deadline_s: float = DEADLINE_S) -> None:
    """One rank, timed; the error is the answer where there is one."""
    request = person.request(seed)
    length, began = person.life.size, time.monotonic()
    try:
        result = await engine.rank(request, began + deadline_s)
    except MFalconError as error:
        into.errors.append(_CODES.get(type(error).__name__, type(error).__name__))
    else:
        into.waited_seconds.append(result.timings.state_us / 1e6)
        where = f"{request.user_id}, seed {seed}"
        if result.history_len != length:  # no forward of another length can be right
            into.errors.append(f"WRONG length {result.history_len}, not {length}")
        else:
            scores = result.task_scores
            answer = Answer(where, person.life, length, request.request_time_ms, request.candidates, scores)
            into.answers.append((answer, result.stale))
    into.seconds.append(time.monotonic() - began)


_CODES = {
    "StorageUnavailable": "UNAVAILABLE",
    "DeadlineExceeded": "DEADLINE_EXCEEDED",
    "DamagedLog": "DATA_LOSS",
    "EngineFailure": "INTERNAL",
}


class Place:
    """Where the Redis of a measurement is, and what can be done to it. url: what the engines are given."""

    def __init__(self, server: RedisServer, url: str, proxy: SlowProxy | None, cluster: RedisCluster | None) -> None:
        self.server = server
        self.url = url
        self.proxy = proxy
        self.cluster = cluster
        self.keys = Keys("faults")

    def chunks(self, user_id: str, server: RedisServer | None = None) -> list[str]:
        """Names of the user's chunks, of every model, in order."""
        found = (server or self.server).command("KEYS", f"{self.keys.index(user_hash(user_id))}:*")
        assert isinstance(found, list)
        return sorted(name.decode() for name in found if isinstance(name, bytes))

    def owns(self, user_id: str) -> bool:
        """Whether a node of a cluster, or a server without one, has the user's keys."""
        return self.cluster is None or self.cluster.owner(self.slot(user_id)) is self.server

    def slot(self, user_id: str) -> int:
        """The user's slot in a cluster."""
        slot = self.server.command("CLUSTER", "KEYSLOT", self.keys.log(user_hash(user_id)))
        assert isinstance(slot, int)
        return slot


@contextmanager
def place(*, proxied: bool = False, clustered: bool = False, append_only: bool = False) -> Iterator[Place]:
    """A server of its own; behind a proxy, or one node of a cluster."""
    with ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster()) if clustered else None
        server = cluster.servers[0] if cluster else stack.enter_context(RedisServer(append_only=append_only))
        proxy = stack.enter_context(SlowProxy(server.port)) if proxied else None
        yield Place(server, proxy.url if proxy else server.url, proxy, cluster)


class World:
    """`host` has its users' states in memory, `cold` keeps none: it finds them in Redis or encodes them again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        setup: Setup,
        at: Place,
        num_users: int,
        deadline_s: float = DEADLINE_S,
        timeout_s: float = 0.0,
    ) -> None:
        """timeout_s: of an answer of Redis; 0 for that which `mfalcon serve` has by default."""
        self.checkpoint = checkpoint
        self.deadline_s = deadline_s
        self.timeout_s = timeout_s
        self.setup = setup
        self.at = at
        names = (f"user-{number}" for number in range(100_000))
        owned = (name for name in names if at.owns(name))
        self.people = [Person(next(owned), Life()) for _ in range(num_users)]
        self.host_metrics, self.cold_metrics = ServerMetrics(), ServerMetrics()
        self._host: Engine | None = None
        self._cold: Engine | None = None

    @property
    def host(self) -> Engine:
        """Has had room for all its states."""
        assert self._host is not None
        return self._host

    @property
    def cold(self) -> Engine:
        """Has room for none."""
        assert self._cold is not None
        return self._cold

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Both engines, started."""
        async with AsyncExitStack() as stack:
            self._host = await stack.enter_async_context(
                engine(self.checkpoint, self.options(), _HOST_BYTES, self.host_metrics)
            )
            self._cold = await stack.enter_async_context(engine(self.checkpoint, self.options(), 0, self.cold_metrics))
            yield self

    def options(self) -> RedisOptions:
        """As `mfalcon serve` has them by default, but for the timeout."""
        patient = (self.timeout_s, self.timeout_s) if self.timeout_s else ()
        return RedisOptions(
            RedisSettings(self.at.url, *patient),
            prefix=self.at.keys.prefix,
            holds_log=self.setup != "states",
            log=LogOptions(serve_stale=self.setup == "stale"),
        )

    async def until_reachable(self) -> None:
        """Return once no engine takes Redis for dead."""
        waits_until = time.monotonic() + _WAIT_S
        for each in (self.host, self.cold):
            redis = each.histories.redis
            assert redis is not None
            while not all(redis.client.available(self.at.keys.log(user_hash(one.user_id))) for one in self.people):
                if time.monotonic() > waits_until:
                    raise ConfigError(f"Redis is not reachable after {_WAIT_S:g} s")
                await asyncio.sleep(_POLL_S)

    async def tell(self, engines: Sequence[Engine]) -> None:
        """Have every user's history acknowledged: by each engine where logs are embedded, else by the first."""
        for number, person in enumerate(self.people):
            events = random_events(number)
            for each in engines if self.setup == "states" else engines[:1]:
                await each.append_events(person.user_id, Append(events, 0))
            person.life.add(events)

    async def encode(self) -> None:
        """Bring every state to the host of one engine and into Redis. The other one has never found Redis empty."""
        for person in self.people:
            await _prefill(self.host, person.user_id)
        layout = layout_of(self.checkpoint.model, "", self.options().state_dtype)
        wanted = -(-NUM_EVENTS // layout.events_per_chunk)
        assert wanted > 1, "a lost chunk has to be one of several"
        waits_until = time.monotonic() + _WAIT_S
        while any(len(self.at.chunks(person.user_id)) < wanted for person in self.people):
            if time.monotonic() > waits_until:
                raise ConfigError(f"the states are not in Redis after {_WAIT_S:g} s")
            await asyncio.sleep(_POLL_S)

    async def prepare(self) -> None:
        """Tell, encode, and rank until costs are known and connections stand."""
        await self.tell((self.host, self.cold))
        await self.encode()
        for seed in range(_WARM_UP):
            await self.rounds(Ranked(), Ranked(), seed)

    async def rounds(self, host: Ranked, cold: Ranked, seed: int) -> None:
        """Every user once, on both engines in turn."""
        for number, person in enumerate(self.people):
            await self.rank(self.host, person, seed + number, host)
            await self.rank(self.cold, person, seed + number, cold)

    async def rank(self, engine: Engine, person: Person, seed: int, into: Ranked) -> None:
        """One rank, timed, within the deadline."""
        await rank(engine, person, seed, into, self.deadline_s)


@asynccontextmanager
async def engine(
    checkpoint: Checkpoint, redis: RedisOptions | None, kv_budget_bytes: int, metrics: ServerMetrics | None = None
) -> AsyncIterator[Engine]:
    """An engine of this process, warm and started."""
    # The reference encodes so slowly that fetching wins: a fault of Redis must have something to hit.
    config = EngineConfig(
        threads=1,
        ranker=RankerOptions(backend=REFERENCE, microbatch=_MICROBATCH, kv_budget_bytes=kv_budget_bytes),
        histories=HistoryOptions(redis=redis),
    )
    made = compose(checkpoint, config, metrics)
    try:
        await asyncio.to_thread(made.wait_ready, _WAIT_S)
        await made.start()
        yield made
    finally:
        await made.close()


async def _prefill(engine: Engine, user_id: str) -> None:
    """As often as it takes: on a busy machine a healthy Redis may miss a deadline of 50 ms."""
    for left in reversed(range(_TRIES)):
        try:
            await engine.prefill(user_id, None)
            return
        except StorageUnavailable:
            if not left:
                raise
            await asyncio.sleep(_RETRY_S)

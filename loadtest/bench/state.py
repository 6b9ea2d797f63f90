"""Ways to a KV state: on the host, from Redis, or encoded again; and how well the predictor chooses between them."""

import asyncio
import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from statistics import fmean, median

import numpy as np
import torch

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.replica import Brought, Replica
from loadtest.bench.shapes import REQUEST_TIME_MS, Shape, dtype_named, shape_named
from loadtest.faults.redis_server import RedisServer
from loadtest.faults.slow_proxy import SlowProxy
from loadtest.load.append_traffic import AppendTraffic, append_traffic
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from loadtest.report.timing import Spread, spread
from mfalcon.backends.select import serve
from mfalcon.engine.redis_parts import RedisOptions, layout_of
from mfalcon.errors import ConfigError
from mfalcon.history.history import History
from mfalcon.kvcache.chunk import HEADER_BYTES, PayloadDtype
from mfalcon.kvcache.planner import Predictor
from mfalcon.kvcache.state import KVState
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import EVENT_DTYPE, Append, Events

NOTES = (
    "each way is timed from the request's arrival to a state that can be scored against, through the engine's own "
    "fetcher and runner; the event log is in the process, so that states alone are compared",
    "recompute: encode all n events (tier behind: the last quarter, after a state of the others on the host)",
    "fetch: read all chunks from Redis, verify, decode, find; host: the state is on the host, which on a CPU is where "
    "a device hit is too: of it, acquire is what the store costs",
    "fetch chosen: how often the predictor chose it in this cell's rounds, after learning from its own choices alone; "
    "regret: median cost of its choices over the better median; a host hit leaves it nothing to choose",
    "crossover: events from which fetching wins, measured by interpolation (0: from the first length on) and predicted",
    "networks: loopback is direct; lan adds 2 ms and passes 100 MB/s at most, slow 10 ms and 30 MB/s (a proxy)",
)

_ITEMS = 1_000
_PATIENCE_S = 60.0
"""For Redis: what is slow shall be measured, not given up."""
_BEHIND = 4
"""One part in so many is missing on the host in tier "behind"."""
_ACQUIRES = 20
_FEW = 20
"""Events of a short history, whose memory is told beside the others'."""
_TIERS = ("host", "behind", "redis")


@dataclass(frozen=True, slots=True)
class Network:
    """What lies between the replica and Redis."""

    delay_s: float = 0.0
    bytes_per_second: float | None = None


NETWORKS = {"loopback": Network(), "lan": Network(2e-3, 100e6), "slow": Network(10e-3, 30e6)}


@dataclass(frozen=True, slots=True)
class StateOptions:
    """What to measure. payloads: types of the chunks. learning: rounds before those that count; rounds: at least 2.

    redis_url: of a server that is there, in place of an own one; then only the network "loopback" (direct).
    """

    shapes: tuple[str, ...] = ("S",)
    histories: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    payloads: tuple[str, ...] = ("float32", "bfloat16", "int8")
    networks: tuple[str, ...] = ("loopback", "lan", "slow")
    dtype: str = "float32"
    learning: int = 2
    rounds: int = 5
    threads: int = 1
    redis_url: str | None = None
    seed: int = 0


QUICK = StateOptions(histories=(64, 256, 1024), networks=("loopback",), learning=1, rounds=3)
"""Less than a minute."""


@dataclass(frozen=True, slots=True)
class StateCell:
    """One n, payload, network and tier; see NOTES. tier: where the state is: redis (alone), behind or host."""

    shape: str
    network: str
    payload: str
    tier: str
    n: int
    recompute_ms: Spread
    fetch_ms: Spread
    host_ms: Spread | None
    acquire_ms: Spread | None
    predicted_recompute_ms: float | None
    predicted_fetch_ms: float | None
    fetch_chosen: float | None
    regret: float

    @property
    def fetch_speedup(self) -> float:
        """Recompute over fetch."""
        return self.recompute_ms.median_ms / self.fetch_ms.median_ms


@dataclass(frozen=True, slots=True)
class Crossover:
    """Events from which fetching wins; None: not up to the longest history."""

    shape: str
    network: str
    payload: str
    measured: float | None
    predicted: float | None


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of states in Redis. full: of the longest history, headers included."""

    shape: str
    payload: str
    bytes_per_event: float
    events_per_chunk: int
    full_bytes: int
    full_chunks: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a state of n events in the block pool, and of its keys, values and times alone."""

    shape: str
    n: int
    bytes_held: int
    bytes_of_content: int


@dataclass(frozen=True, slots=True)
class StateResult:
    """Everything that `mfalcon bench state` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    dtype: str
    notes: tuple[str, ...]
    cells: tuple[StateCell, ...]
    crossovers: tuple[Crossover, ...]
    sizes: tuple[Size, ...]
    append: tuple[AppendTraffic, ...]
    bars: tuple[Bar, ...]
    memory: tuple[Memory, ...] = ()


@dataclass(slots=True)
class _Samples:
    """Of one cell, as they come."""

    recompute: list[float] = field(default_factory=list)
    fetch: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    acquire: list[float] = field(default_factory=list)
    free: list[Brought] = field(default_factory=list)


_Key = tuple[str, str, int, str]
"""Network, payload, n, tier."""


def run(options: StateOptions, progress: Callable[[str], None]) -> StateResult:
    """Measure every cell; `progress` is told what comes next.

    Raises ConfigError for an unknown shape, dtype, payload or network, or when there is no server.
    """
    _check(options)
    torch.set_num_threads(options.threads)
    return asyncio.run(_run(options, progress))


def _check(options: StateOptions) -> None:
    for name in options.shapes:
        shape_named(name)
    dtype_named(options.dtype)
    for name in options.payloads:
        PayloadDtype.from_name(name)
    for name in options.networks:
        if name not in NETWORKS:
            raise ConfigError(f"network: got {name!r}, must be one of {', '.join(NETWORKS)}")
    if options.redis_url is not None and options.networks != ("loopback",):
        raise ConfigError("network: a server of your own is measured as it is reached: only loopback")


async def _run(options: StateOptions, progress: Callable[[str], None]) -> StateResult:
    machine = this_machine()
    cells: list[StateCell] = []
    crossovers: list[Crossover] = []
    sizes: list[Size] = []
    traffic: list[AppendTraffic] = []
    memory: list[Memory] = []
    for shape in map(shape_named, options.shapes):
        longest = max(options.histories)
        checkpoint = random_checkpoint(
            shape, _ITEMS, options.seed, max_history=longest, dtype=dtype_named(options.dtype)
        )
        memory += _memory(shape, checkpoint, sorted({_FEW, *options.histories}))
        sizes += [_size(shape, checkpoint, payload, longest) for payload in options.payloads]
        with ExitStack() as stack:
            urls = _reach(options, stack)
            async with AsyncExitStack() as entered:
                bench = _Bench(shape, checkpoint, options, progress)
                await bench.open(urls, entered)
                await bench.measure()
                cells += bench.cells()
                crossovers += bench.crossovers(longest)
                await bench.erase()
        if options.redis_url is None:
            progress(f"{shape.name}: what one appended event makes travel")
            traffic += await _traffic(options, checkpoint)
    return StateResult(
        "state",
        machine,
        commit(),
        options.dtype,
        NOTES,
        tuple(cells),
        tuple(crossovers),
        tuple(sizes),
        tuple(traffic),
        tuple(bars(cells, sizes, traffic)),
        tuple(memory),
    )


def _reach(options: StateOptions, stack: ExitStack) -> dict[str, str]:
    """URL of the server behind each network."""
    if options.redis_url is not None:
        return {"loopback": options.redis_url}
    server = stack.enter_context(RedisServer())
    urls = {}
    for name in options.networks:
        network = NETWORKS[name]
        if network == Network():
            urls[name] = server.url
        else:
            proxy = SlowProxy(server.port, delay_s=network.delay_s, bytes_per_second=network.bytes_per_second)
            urls[name] = stack.enter_context(proxy).url
    return urls


class _Bench:
    """One shape: a replica for each network and payload, all on one server, taking turns."""

    def __init__(
        self,
        shape: Shape,
        checkpoint: Checkpoint,
        options: StateOptions,
        progress: Callable[[str], None],
    ) -> None:
        self._shape, self._checkpoint, self._options = shape, checkpoint, options
        self._progress = progress
        self._prefix = f"bench-{uuid.uuid4().hex[:12]}"
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._samples: dict[_Key, _Samples] = {}

    async def open(self, urls: dict[str, str], entered: AsyncExitStack) -> None:
        """Start the replicas; those of the first network write every state to Redis."""
        options = self._options
        for network, url in urls.items():
            for payload in options.payloads:
                self._progress(f"{self._shape.name}: a replica with {payload} over {network}")
                redis = _redis_options(url, self._prefix, payload, holds_log=False)
                replica = Replica(self._checkpoint, redis, threads=options.threads)
                await entered.enter_async_context(replica)
                self._replicas[network, payload] = replica
                for n in options.histories:
                    await replica.log.append(_user(n), Append(random_history(n, options.seed), 0), None)
        for (network, _), replica in self._replicas.items():
            if network == next(iter(urls)):
                for n in options.histories:
                    await replica.bring(_user(n), "recompute")

    async def measure(self) -> None:
        """All rounds: each brings every state of every replica by every way."""
        options = self._options
        for index in range(options.learning + options.rounds):
            counts = index >= options.learning
            self._progress(f"{self._shape.name}: round {index + 1} of {options.learning + options.rounds}")
            for n in options.histories:
                for (network, payload), replica in self._replicas.items():
                    history = await replica.read(_user(n))
                    behind = await replica.encoded(history, n - n // _BEHIND)
                    for tier, state in (("redis", None), ("behind", behind)):
                        samples = self._samples.setdefault((network, payload, n, tier), _Samples())
                        await _take_turn(replica, history, state, samples if counts else None, index)
                    if counts:
                        samples = self._samples.setdefault((network, payload, n, "host"), _Samples())
                        await _hit(replica, history, samples)

    def cells(self) -> list[StateCell]:
        """What the samples say."""
        found = []
        for key in sorted(self._samples, key=self._place):
            samples, (network, payload, n, tier) = self._samples[key], key
            if tier == "host":
                other = self._samples[network, payload, n, "redis"]
                found.append(_host_cell(self._shape.name, key, samples, other))
            else:
                found.append(_cell(self._shape.name, key, samples))
        return found

    def _place(self, key: _Key) -> tuple[int, int, int, int]:
        network, payload, n, tier = key
        options = self._options
        return options.networks.index(network), options.payloads.index(payload), _TIERS.index(tier), n

    def crossovers(self, longest: int) -> list[Crossover]:
        """Of each replica, from the states that are in Redis alone."""
        found = []
        per_event = self._checkpoint.prefix_model.tokens_per_event
        for (network, payload), replica in self._replicas.items():
            of_each = [(n, self._samples[network, payload, n, "redis"]) for n in sorted(self._options.histories)]
            points = [(n, median(samples.fetch), median(samples.recompute)) for n, samples in of_each]
            bytes_per_token = replica.remote.states.layout.payload_bytes(1) / per_event
            tokens = predicted_crossover(replica.predictor, bytes_per_token, longest * per_event)
            predicted = None if tokens is None else tokens / per_event
            found.append(Crossover(self._shape.name, network, payload, crossover(points), predicted))
        return found

    async def erase(self) -> None:
        """Leave nothing in Redis."""
        replica = next(iter(self._replicas.values()))
        for n in self._options.histories:
            await replica.remote.states.delete((await replica.read(_user(n))).user, _PATIENCE_S)


async def _take_turn(
    replica: Replica, history: History, state: KVState | None, samples: _Samples | None, index: int
) -> None:
    """One request that the predictor decides; if it counts, then one by each way, in alternating order."""
    await replica.hold(history, state)
    free = await replica.bring(history.user_id)
    if samples is None:
        return
    samples.free.append(free)
    for way in ("fetch", "recompute") if index % 2 else ("recompute", "fetch"):
        await replica.hold(history, state)
        if way == "fetch":
            samples.fetch.append((await replica.bring(history.user_id, "fetch")).seconds)
        else:
            samples.recompute.append((await replica.bring(history.user_id, "recompute")).seconds)


async def _hit(replica: Replica, history: History, samples: _Samples) -> None:
    await replica.hold(history, await replica.encoded(history, len(history)))
    samples.host.append((await replica.bring(history.user_id)).seconds)
    samples.acquire += [await replica.acquire(history) for _ in range(_ACQUIRES)]


def _cell(shape: str, key: _Key, samples: _Samples) -> StateCell:
    network, payload, n, tier = key
    decisions = [brought.decision for brought in samples.free if brought.decision is not None]
    fetches = [decision.choice == "fetch" for decision in decisions]
    last = decisions[-1]
    fetch, recompute = spread(samples.fetch), spread(samples.recompute)
    return StateCell(
        shape=shape,
        network=network,
        payload=payload,
        tier=tier,
        n=n,
        recompute_ms=recompute,
        fetch_ms=fetch,
        host_ms=None,
        acquire_ms=None,
        predicted_recompute_ms=last.recompute.seconds * 1e3,
        predicted_fetch_ms=last.fetch.seconds * 1e3 if last.fetch is not None else None,
        fetch_chosen=fmean(fetches),
        regret=regret(fetches, fetch.median_ms, recompute.median_ms),
    )


def _host_cell(shape: str, key: _Key, samples: _Samples, other: _Samples) -> StateCell:
    network, payload, n, tier = key
    host, fetch, recompute = spread(samples.host), spread(other.fetch), spread(other.recompute)
    return StateCell(
        shape=shape,
        network=network,
        payload=payload,
        tier=tier,
        n=n,
        recompute_ms=recompute,
        fetch_ms=fetch,
        host_ms=host,
        acquire_ms=spread(samples.acquire),
        predicted_recompute_ms=None,
        predicted_fetch_ms=None,
        fetch_chosen=None,
        regret=host.median_ms / min(host.median_ms, fetch.median_ms, recompute.median_ms),
    )


def regret(fetched: Sequence[bool], fetch_ms: float, recompute_ms: float) -> float:
    """Mean cost of some choices over the cost of the better way; 1 is perfect."""
    return fmean(fetch_ms if choice else recompute_ms for choice in fetched) / min(fetch_ms, recompute_ms)


def predicted_crossover(predictor: Predictor, bytes_per_token: float, limit: int = 65_536) -> int | None:
    """The number of tokens from which fetching beats recomputing, up to a limit; None if it does not there.

    Powers of two are tried downward from the limit until one loses; the answer lies between it and the last that
    won, found by bisection.
    """

    def wins(num_tokens: int) -> bool:
        return predictor.expected_fetch_wins(num_tokens, round(num_tokens * bytes_per_token))

    if not wins(limit):
        return None
    won, lost = limit, 1 << (limit.bit_length() - 1)
    while lost and wins(lost):
        won, lost = lost, lost // 2
    while won - lost > 1:
        middle = (won + lost) // 2
        won, lost = (middle, lost) if wins(middle) else (won, middle)
    return won


def crossover(points: Sequence[tuple[int, float, float]]) -> float | None:
    """Where fetching begins to win for good, from (n, seconds of fetching, of recomputing) in ascending n.

    The logarithm of their ratio is taken as straight between two lengths in log n. None if fetching loses at the
    longest, 0 if it wins at every one.
    """
    above: tuple[float, float] | None = None
    for n, fetch, recompute in reversed(points):
        here = math.log(n), math.log(fetch / recompute)
        if here[1] >= 0:
            if above is None:
                return None
            share = here[1] / (here[1] - above[1])
            return math.exp(here[0] + share * (above[0] - here[0]))
        above = here
    return 0.0


def bars(cells: Sequence[StateCell], sizes: Sequence[Size], traffic: Sequence[AppendTraffic]) -> list[Bar]:
    """The promises, as far as the run measured them: of S, else of the only shape."""
    found = []
    graded = {
        "choices within 1.15x of the better way, share of cells (tiers host and redis)": ("host", "redis"),
        "the same where there is something to choose (tiers redis and behind)": ("redis", "behind"),
    }
    for name, tiers in graded.items():
        chosen = [cell.regret <= 1.15 for cell in cells if cell.tier in tiers]
        if chosen:
            found.append(Bar.least(name, fmean(chosen), 0.95))
    for n, limit in ((1024, 1.5), (4096, 3.0)):
        for cell in cells:
            if (cell.shape, cell.network, cell.tier, cell.n) == ("S", "loopback", "redis", n):
                name = f"S n={n} {cell.payload} from Redis on loopback, times as fast as recomputing"
                found.append(Bar.least(name, cell.fetch_speedup, limit))
    acquires = [cell.acquire_ms.median_ms for cell in cells if cell.acquire_ms is not None]
    if acquires:
        found.append(Bar.most("worst median of acquire, ms", max(acquires), 0.2))
    by_name = {(size.shape, size.payload): size for size in sizes}
    for (shape, payload), size in by_name.items():
        wide = by_name.get((shape, "bfloat16"))
        if payload == "int8" and wide is not None and shape != "tiny":
            ratio = size.full_bytes / wide.full_bytes
            found.append(Bar.most(f"{shape}: int8 over bfloat16, bytes in Redis", ratio, 0.52))
    for counts in traffic:
        where = f"one event after n={counts.n}, {counts.dtype}"
        found.append(Bar.most(f"{where}: chunks written", counts.chunks_written, 2))
        found.append(Bar.most(f"{where}: chunks read", counts.chunks_read, 0))
        # The reply is the header of 64 bytes, the position and the event, framed.
        found.append(Bar.most(f"{where}: log bytes read", counts.log_bytes_sent, counts.delta_bytes + 128))
    return found


def _size(shape: Shape, checkpoint: Checkpoint, payload: str, n: int) -> Size:
    layout = layout_of(checkpoint.model, checkpoint.fingerprint, PayloadDtype.from_name(payload))
    chunks = -(-n // layout.events_per_chunk)
    return Size(
        shape=shape.name,
        payload=payload,
        bytes_per_event=layout.payload_bytes(1),
        events_per_chunk=layout.events_per_chunk,
        full_bytes=layout.payload_bytes(n) + chunks * HEADER_BYTES,
        full_chunks=chunks,
    )


def _memory(shape: Shape, checkpoint: Checkpoint, histories: Sequence[int]) -> list[Memory]:
    """What the pool's accounts say of a state of each length."""
    served, per_event = serve(checkpoint.model), checkpoint.prefix_model.tokens_per_event
    content = served.pool.layout.shape.bytes_per_token() * per_event
    held = [(n, served.empty_state().grown(n * per_event).num_bytes) for n in histories]
    return [Memory(shape.name, n, num_bytes, n * content) for n, num_bytes in held]


async def _traffic(options: StateOptions, checkpoint: Checkpoint) -> list[AppendTraffic]:
    """At n=1024 if the window has room for one event more, else as near as it has."""
    n = min(1024, checkpoint.model.config.max_history - 1)
    events, found = random_history(n + 1, options.seed), []
    for payload in options.payloads:
        with RedisServer() as server:
            redis = _redis_options(server.url, "bench", payload, holds_log=True)
            found.append(await append_traffic(server, checkpoint, redis, events))
    return found


def _redis_options(url: str, prefix: str, payload: str, *, holds_log: bool) -> RedisOptions:
    settings = RedisSettings(url, timeout_s=_PATIENCE_S, write_timeout_s=_PATIENCE_S)
    dtype = PayloadDtype.from_name(payload)
    return replace(RedisOptions(settings), prefix=prefix, state_dtype=dtype, holds_log=holds_log, ttl_s=3_600.0)


def _user(n: int) -> str:
    return f"n={n}"


def random_history(num_events: int, seed: int) -> Events:
    """Events of the last 90 days on the items of a random checkpoint, in time order."""
    rng = np.random.default_rng(seed)
    events = np.zeros(num_events, dtype=EVENT_DTYPE)
    events["item_id"] = rng.integers(1, _ITEMS + 1, num_events)
    events["actions"] = 1 << rng.integers(0, 5, num_events)
    events["value"] = rng.integers(1, 6, num_events)
    events["time_ms"] = REQUEST_TIME_MS - np.sort(rng.integers(1, 90 * 86_400_000, num_events))[::-1]
    return events

"""Faults of Redis, one at a time: what Rank is answered, what it costs and which counter tells of it.

Every fault is injected into a real server. Every answer is compared with a cold forward over the acknowledged history.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from loadtest.faults.world import DEADLINE_S, SETUPS, Person, Ranked, Setup, World, fault_checkpoint, place, rank
from loadtest.faults.world import random_events as new_events
from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.engine.redis_parts import layout_of
from mfalcon.errors import MFalconError, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.kvcache.chunk import ChunkLayout, pack, unpack
from mfalcon.metrics import StateMetrics
from mfalcon.models.checkpoint import Checkpoint

LATE_S = 0.1
"""Past its deadline an answer is on its way: a busy machine holds a thread up for so long."""
_POLL_S = 0.02
_BEFORE, _UNDER = 1_000, 2_000
"""Seeds of the candidates."""
_NUM_APPENDS = 3
_THROTTLE = 1e6


@dataclass(frozen=True, slots=True)
class Fault:
    """how: is it injected. tells: the counter that must move, by a part of its name and labels. in_log: whether it is
    one of the log too. proxied, clustered: the Redis that it needs. absent: Redis is not there when the engines start.
    """

    name: str
    how: str
    inject: Callable[[World], None]
    tells: str
    in_log: bool = True
    proxied: bool = False
    clustered: bool = False
    absent: bool = False


@dataclass(frozen=True, slots=True)
class Answers:
    """What the ranks of one kind were answered, and their times beside those before the fault. waited_ms: of those that
    got scores, the part before the device was asked: log, decision, fetch.
    """

    outcomes: dict[str, int]
    p50_ms: float
    max_ms: float
    healthy_p50_ms: float
    healthy_max_ms: float
    waited_p50_ms: float
    waited_max_ms: float

    @property
    def text(self) -> str:
        """As a cell."""
        if len(self.outcomes) == 1:
            return next(iter(self.outcomes))
        return ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))

    @property
    def added_p50_ms(self) -> float:
        """Median under the fault less the healthy median."""
        return self.p50_ms - self.healthy_p50_ms

    @property
    def added_max_ms(self) -> float:
        """Longest under the fault less the healthy median."""
        return self.max_ms - self.healthy_p50_ms


@dataclass(frozen=True, slots=True)
class Row:
    """One fault in one setup. append: what appends during the fault were answered. counters: what moved in the engine
    whose states are only in Redis.
    """

    fault: str
    how: str
    setup: Setup
    on_host: Answers
    only_in_redis: Answers
    append: dict[str, int]
    counters: dict[str, float]
    tells: str
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FaultTable:
    """All rows, and where they were measured."""

    machine: Machine
    commit: str | None
    deadline_ms: float
    num_ranks: int
    rows: tuple[Row, ...]

    @property
    def holds(self) -> bool:
        """Whether every rank was answered rightly or with an explicit error, in time, and a counter told of it."""
        return not any(row.complaints for row in self.rows)


def _kill(world: World) -> None:
    world.at.server.kill()


def _freeze(world: World) -> None:
    world.at.server.freeze()


def _delay(seconds: float) -> Callable[[World], None]:
    def inject(world: World) -> None:
        assert world.at.proxy is not None
        world.at.proxy.delay_s = seconds

    return inject


def _throttle(world: World) -> None:
    assert world.at.proxy is not None
    world.at.proxy.bytes_per_second = _THROTTLE


def _fill(world: World) -> None:
    world.at.server.command("CONFIG", "SET", "maxmemory", 1)  # noeviction is Redis' own policy


def _evict(world: World) -> None:
    """Room for half of the states."""
    server, at = world.at.server, world.at
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lfu")
    sizes = (server.command("MEMORY", "USAGE", name) for person in world.people for name in at.chunks(person.user_id))
    states = sum(size for size in sizes if isinstance(size, int))
    used = next(line for line in server.text("INFO", "memory").splitlines() if line.startswith("used_memory:"))
    server.command("CONFIG", "SET", "maxmemory", int(used.partition(":")[2]) - states // 2)


def _read_only(world: World) -> None:
    world.at.server.command("REPLICAOF", "127.0.0.1", 1)


def _lock(world: World) -> None:
    """On one connection, which keeps its rights: the next one has none."""
    url = world.at.server.url
    with redis.Redis.from_url(url, single_connection_client=True, retry=Retry(NoBackoff(), 0)) as client:
        client.config_set("requirepass", "secret")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal")


def _move(world: World) -> None:
    cluster = world.at.cluster
    assert cluster is not None
    for person in world.people:
        cluster.move_slot(world.at.slot(person.user_id), cluster.servers[1])


def _each(spoil: Callable[[World, Person, list[str]], None]) -> Callable[[World], None]:
    """Do something to the chunks of every user."""

    def inject(world: World) -> None:
        for person in world.people:
            spoil(world, person, world.at.chunks(person.user_id))

    return inject


def _lose(world: World, person: Person, chunks: list[str]) -> None:
    world.at.server.command("DEL", chunks[1])


def _flip(world: World, person: Person, chunks: list[str]) -> None:
    world.at.server.command("SETRANGE", chunks[0], 300, b"spoilt")


def _truncate(world: World, person: Person, chunks: list[str]) -> None:
    value = world.at.server.command("GET", chunks[0])
    assert isinstance(value, bytes)
    world.at.server.command("SET", chunks[0], value[: len(value) // 2])


def _swap(world: World, person: Person, chunks: list[str]) -> None:
    """Everybody gets the first user's; he gets the last one's."""
    other = world.people[0 if person is not world.people[0] else -1]
    world.at.server.command("COPY", world.at.chunks(other.user_id)[0], chunks[0], "REPLACE")


def _other_model(world: World, person: Person, chunks: list[str]) -> None:
    """What a model of other weights would have written: its fingerprint, and a checksum that holds."""
    value = world.at.server.command("GET", chunks[0])
    assert isinstance(value, bytes)
    header, payload = unpack(value, _layout(world, ""), user_hash(person.user_id), None)
    foreign = replace(header, layout=_layout(world, "other"))
    world.at.server.command("SET", chunks[0], pack(foreign, payload, None))


def _layout(world: World, suffix: str) -> ChunkLayout:
    """As the engine's own, or with another fingerprint."""
    model = world.checkpoint.model
    fingerprint = f"{world.checkpoint.fingerprint}{suffix}:{model.kv_shape().dtype}"
    return layout_of(model, fingerprint, world.options().state_dtype)


FAULTS = (
    Fault("absent at start", "nobody listens", _kill, "redis_errors", absent=True),
    Fault("killed", "SIGKILL", _kill, "redis_errors"),
    Fault("frozen", "SIGSTOP", _freeze, "timeout}"),
    Fault("slow: 50 ms", "proxy delays each reply", _delay(0.05), "timeout}", proxied=True),
    Fault("slow: 200 ms", "proxy delays each reply", _delay(0.2), "timeout}", proxied=True),
    Fault("throttled: 1 MB/s", "proxy bounds each connection", _throttle, "timeout}", proxied=True),
    Fault("out of memory", "CONFIG SET maxmemory 1 (noeviction)", _fill, "oom}"),
    Fault("states evicted", "maxmemory for half of them, volatile-lfu", _evict, "state_tokens{encoded}"),
    Fault("read-only", "REPLICAOF a dead host", _read_only, "readonly}"),
    Fault("NOAUTH", "CONFIG SET requirepass, CLIENT KILL", _lock, "auth}"),
    Fault("MOVED", "plain URL of a cluster's node, its slots moved", _move, "moved}", clustered=True),
    Fault("one chunk evicted", "DEL", _each(_lose), "state_tokens{encoded}", in_log=False),
    Fault("chunk's bytes flipped", "SETRANGE", _each(_flip), "chunks_rejected{checksum}", in_log=False),
    Fault("chunk truncated", "SET its first half", _each(_truncate), "chunks_rejected{truncated}", in_log=False),
    Fault("another user's chunk", "COPY", _each(_swap), "chunks_rejected{user}", in_log=False),
    Fault("another model's chunk", "SET, checksum good", _each(_other_model), "chunks_rejected{model}", in_log=False),
)


def cases() -> Iterator[tuple[Fault, Setup]]:
    """Every fault in every setup where it matters."""
    for fault in FAULTS:
        for setup in SETUPS:
            if setup == "states" or fault.in_log:
                yield fault, setup


async def measure(fault: Fault, setup: Setup, checkpoint: Checkpoint, num_ranks: int) -> Row:
    """Inject one fault and rank `num_ranks` users on both engines, before and under it."""
    healthy, faulty = (Ranked(), Ranked()), (Ranked(), Ranked())
    appended: Counter[str] = Counter()
    if fault.absent:
        with place() as at:
            async with World(checkpoint, setup, at, num_ranks).running() as world:
                await world.prepare()
                await world.rounds(*healthy, seed=_BEFORE)
    with place(proxied=fault.proxied, clustered=fault.clustered) as at:
        world = World(checkpoint, setup, at, num_ranks)
        began = counters(world.cold_metrics)
        if fault.absent:
            fault.inject(world)
        async with world.running():
            if not fault.absent:
                await world.prepare()
                await world.rounds(*healthy, seed=_BEFORE)
                began = counters(world.cold_metrics)
                await asyncio.to_thread(fault.inject, world)
            elif setup == "states":
                await world.tell((world.host, world.cold))
                await world.rounds(Ranked(), Ranked(), 0)  # now the one has its states on host
            await world.rounds(*faulty, seed=_UNDER)
            for person in world.people[:_NUM_APPENDS]:
                await _append(world, person, appended, faulty[1])
            moved = await _moved(world.cold_metrics, began, fault.tells)
            _lift(world)
    on_host, only_in_redis = (
        _answers(under, before, checkpoint) for under, before in zip(faulty, healthy, strict=True)
    )
    complaints = [*_complaints(fault, setup, on_host), *_complaints(fault, setup, only_in_redis)]
    if not any(fault.tells in name for name in moved):
        complaints.append(f"no counter {fault.tells} moved")
    return Row(
        fault.name,
        fault.how,
        setup,
        on_host,
        only_in_redis,
        dict(appended),
        moved,
        fault.tells,
        tuple(complaints),
    )


def _lift(world: World) -> None:
    """Let calls under way end, so that the engines close at once."""
    world.at.server.thaw()
    if world.at.proxy is not None:
        world.at.proxy.delay_s, world.at.proxy.bytes_per_second = 0.0, None


async def _append(world: World, person: Person, into: Counter[str], ranked: Ranked) -> None:
    """One event more, and where it was acknowledged a rank that must see it and has a chunk to write."""
    last = int(person.life.events()["time_ms"][-1]) if person.life.size else 0
    events = new_events(person.life.size, 1, after_ms=last or 10**12)
    engines = (world.cold, world.host) if world.setup == "states" else (world.cold,)
    try:
        for each in engines:
            await each.append_events(person.user_id, events, person.life.size, time.monotonic() + DEADLINE_S)
    except StorageUnavailable as error:
        into["UNAVAILABLE, " + ("may be written" if error.may_be_done else "not written")] += 1
    except MFalconError as error:
        into[type(error).__name__] += 1
    else:
        into["acknowledged"] += 1
        person.life.add(events)
        await rank(world.cold, person, 3_000, ranked)


async def _moved(metrics: StateMetrics, began: Counter[str], tells: str) -> dict[str, float]:
    """What has moved since; what is written behind the requests' backs takes a moment."""
    for _ in range(100):
        now = counters(metrics)
        moved: dict[str, float] = {
            name: count - began[name] for name, count in sorted(now.items()) if count > began[name]
        }
        if any(tells in name for name in moved):
            break
        await asyncio.sleep(_POLL_S)
    return moved


def counters(metrics: StateMetrics) -> Counter[str]:
    """Every counter, as name{labels}, without what all names begin and end with."""
    counts: Counter[str] = Counter()
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                name = sample.name.removeprefix("mfalcon_").removesuffix("_total")
                labels = ",".join(value for label, value in sample.labels.items() if label != "model")  # there is one
                counts[f"{name}{{{labels}}}" if labels else name] = round(sample.value)
    return counts


def _answers(under: Ranked, before: Ranked, checkpoint: Checkpoint) -> Answers:
    waited = np.array(under.waited_seconds or [0.0]) * 1e3
    return Answers(
        dict(under.outcomes(checkpoint)),
        *(under.p50_ms, under.max_ms, before.p50_ms, before.max_ms),
        *(float(np.median(waited)), float(waited.max())),
    )


def _complaints(fault: Fault, setup: Setup, answers: Answers) -> Iterator[str]:
    """What must not be: a wrong answer, one after its deadline, a refusal that nothing demands."""
    allowed = {"right"}
    if setup == "refuse" or (fault.absent and setup == "stale"):
        allowed |= {"UNAVAILABLE"}
    if setup == "stale":
        allowed |= {"stale"}
    for outcome, count in answers.outcomes.items():
        if outcome not in allowed:
            yield f"{count} of {sum(answers.outcomes.values())} were answered {outcome}"
    if answers.max_ms > (DEADLINE_S + LATE_S) * 1e3:
        yield f"an answer took {answers.max_ms:.0f} ms; the deadline is {DEADLINE_S * 1e3:.0f} ms"


def run(num_ranks: int, progress: Callable[[str], None], only: str | None = None) -> FaultTable:
    """Measure every case; only: those whose fault has this in its name."""
    checkpoint = fault_checkpoint()
    rows = []
    for fault, setup in cases():
        if only is None or only in fault.name:
            progress(f"{fault.name}: {SETUPS[setup]}")
            rows.append(asyncio.run(measure(fault, setup, checkpoint, num_ranks)))
    return FaultTable(this_machine(), commit(), DEADLINE_S * 1e3, num_ranks, tuple(rows))


_HEAD = (
    *("fault", "injected by", "in Redis", "state on host", "state only in Redis", "append"),
    *("added ms, on host: p50 (max)", "only in Redis: p50 (max)", "of it before the device: p50 (max)", "counters"),
)


def markdown(table: FaultTable) -> Iterator[str]:
    """Lines of a table."""
    yield f"| {' | '.join(_HEAD)} |"
    yield "|" + "---|" * len(_HEAD)
    for row in table.rows:
        cells = (
            *(row.fault, row.how, IN_REDIS[row.setup], row.on_host.text, row.only_in_redis.text),
            ", ".join(f"{name}" for name in row.append),
            *(f"{each.added_p50_ms:+.1f} ({each.added_max_ms:+.0f})" for each in (row.on_host, row.only_in_redis)),
            f"{row.only_in_redis.waited_p50_ms:.1f} ({row.only_in_redis.waited_max_ms:.0f})",
            ", ".join(f"`{name}` +{count:.0f}" for name, count in _told(row).items()),
        )
        yield f"| {' | '.join(cells)} |"


IN_REDIS: dict[Setup, str] = {"states": "states", "refuse": "log, refuse", "stale": "log, stale"}


def _told(row: Row) -> dict[str, float]:
    """The counters of the fault, and those of its kind."""
    kinds = ("redis_errors", "chunks_rejected", "breaker_opened", "log_reads{stale}", "write_behind_dropped")
    return {name: count for name, count in row.counters.items() if row.tells in name or any(k in name for k in kinds)}

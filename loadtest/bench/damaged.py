"""One user's log in Redis is damaged in every way, or one master of a cluster is killed: what do all others see?

Each fault is measured in turns with its control: the same requests for the same user, whose log is whole, or the same
users while the master lives. So the figures of a row differ by nothing but that fault.
"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import numpy as np

from loadtest.bench.some_checkpoint import some_checkpoint
from loadtest.faults.fleet import Fleet
from loadtest.faults.redis_cluster import RedisCluster
from loadtest.faults.redis_server import RedisServer
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_number, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.history.chain import user_hash
from mfalcon.redis.keys import Keys
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

KEYS = Keys("mfalcon")
VICTIM = "victim"
HUGE_BYTES = 240 << 20
MASTER = "one master killed"
NOTES = (
    "others: ranks and appends by turns of users whose logs are whole, at a fixed rate, from when each was due; of the "
    "killed master those of users of the others alone",
    "control: the same load on the same user with a whole log, in turns with the fault",
    "the user gets: what his own ranks and appends are answered meanwhile",
)
_FLAGS = ("--threads", "1", "--kv-budget-mb", "64")
_TIMEOUT_S = 2.0
_TIME_MS = 1_700_000_000_000
_EVENTS = 100


@dataclass(frozen=True, slots=True)
class DamagedOptions:
    """checkpoint: None for the demo's or random weights. others: users. rate, victim_rate: requests a second of the
    others, and of the user whose log is damaged. seconds: of each of the turns, `rounds` of them with the fault and as
    many without. damaged_log, flags: of the servers.
    """

    checkpoint: Path | None = None
    others: int = 64
    rate: float = 80.0
    victim_rate: float = 20.0
    seconds: float = 4.0
    rounds: int = 4
    damaged_log: str = "refuse"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DamagedRow:
    """One fault; see NOTES. failed: requests of others, with the fault or without; why: what they were told."""

    fault: str
    control_p50_ms: float
    control_p99_ms: float
    p50_ms: float
    p99_ms: float
    asked: int
    failed: int
    why: str
    user_gets: str


@dataclass(frozen=True, slots=True)
class DamagedResult:
    """Everything that `mfalcon bench damaged` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    damaged_log: str
    rows: tuple[DamagedRow, ...]
    bars: tuple[Bar, ...]


@dataclass(slots=True)
class _Tally:
    """What some turns gave."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    victim: Counter[str] = field(default_factory=Counter)


Damage = Callable[[RedisServer, str, bytes], None]


def _of_another_type(redis: RedisServer, key: str, whole: bytes) -> None:
    redis.command("DEL", key)
    redis.command("RPUSH", key, "x")


def _huge(redis: RedisServer, key: str, whole: bytes) -> None:
    redis.command("SETRANGE", key, HUGE_BYTES, "x")


def _truncated(redis: RedisServer, key: str, whole: bytes) -> None:
    redis.command("SET", key, whole[: len(whole) // 2])


def _forged(redis: RedisServer, key: str, whole: bytes) -> None:
    """Every hash is right, the signature is somebody else's."""
    redis.command("SET", key, whole[:96] + os.urandom(16) + whole[112:])


DAMAGES: dict[str, Damage] = {
    "of another type": _of_another_type,
    "240 MB": _huge,
    "truncated": _truncated,
    "forged": _forged,
}
ROLLED_BACK = "rolled back"


def run(options: DamagedOptions, progress: Callable[[str], None]) -> DamagedResult:
    """Measure on a server and a Redis of its own, then on a cluster. Raises EngineFailure if they do not start."""
    machine, rows = this_machine(), []
    with ExitStack() as stack:
        path = stack.enter_context(some_checkpoint(options.checkpoint))
        redis = stack.enter_context(RedisServer())
        secret = redis.directory / "secret"
        secret.write_bytes(os.urandom(32).hex().encode())
        flags = ("--redis-url", redis.url, "--redis-secret-file", str(secret), "--damaged-log", options.damaged_log)
        fleet = stack.enter_context(Fleet(path, 1, (*_FLAGS, *flags, *options.flags)))
        for name in (*DAMAGES, ROLLED_BACK):
            progress(name)
            rows.append(asyncio.run(_damage(options, fleet, redis, name)))
    with ExitStack() as stack:
        progress(MASTER)
        path = stack.enter_context(some_checkpoint(options.checkpoint))
        cluster = stack.enter_context(RedisCluster())
        fleet = stack.enter_context(Fleet(path, 1, (*_FLAGS, "--redis-url", cluster.url, *options.flags)))
        rows.append(asyncio.run(_kill(options, fleet, cluster)))
    return DamagedResult(
        "damaged", machine, commit(), NOTES, options.damaged_log, tuple(rows), _bars(rows, options.damaged_log)
    )


async def _damage(options: DamagedOptions, fleet: Fleet, redis: RedisServer, name: str) -> DamagedRow:
    others = [f"{name} {number}" for number in range(options.others)]
    victim = f"{VICTIM} {name}"
    key = KEYS.log(user_hash(victim))
    async with grpc.aio.insecure_channel(fleet.targets[0]) as channel:
        stub = RankingStub(channel)
        for user_id in (*others, victim):
            await _append(stub, user_id, _EVENTS)
        older = _whole(redis, key)
        control, under = _Tally(), _Tally()
        for number in range(2 * options.rounds):
            is_fault = number % 2 == 1
            await _append(stub, victim, 1)
            whole = _whole(redis, key)
            if is_fault and name == ROLLED_BACK:
                redis.command("SET", key, older)
            elif is_fault:
                DAMAGES[name](redis, key, whole)
            await _turn(options, stub, others, victim, under if is_fault else control)
            if is_fault and name != ROLLED_BACK:
                redis.command("UNLINK", key)
                redis.command("SET", key, whole)
    return _row(name, control, under)


async def _kill(options: DamagedOptions, fleet: Fleet, cluster: RedisCluster) -> DamagedRow:
    dead = cluster.servers[0]
    users: dict[bool, list[str]] = {True: [], False: []}
    for number in range(4 * options.others):
        slot = dead.command("CLUSTER", "KEYSLOT", KEYS.log(user_hash(f"u{number}")))
        assert isinstance(slot, int)
        users[cluster.owner(slot) is dead].append(f"u{number}")
    others, victim = users[False][: options.others], users[True][0]
    async with grpc.aio.insecure_channel(fleet.targets[0]) as channel:
        stub = RankingStub(channel)
        for user_id in (*others, victim):
            await _append(stub, user_id, _EVENTS)
        control, under = _Tally(), _Tally()
        for _ in range(options.rounds):
            await _turn(options, stub, others, victim, control)
        dead.kill()
        for _ in range(options.rounds):
            await _turn(options, stub, others, victim, under)
    return _row(MASTER, control, under)


async def _turn(options: DamagedOptions, stub: RankingStub, others: Sequence[str], victim: str, tally: _Tally) -> None:
    """Some seconds of the load; a turn begins with a pause in which what is written behind is done."""
    await asyncio.sleep(0.2)
    begin = time.monotonic()
    num, num_victim = (max(1, round(rate * options.seconds)) for rate in (options.rate, options.victim_rate))
    calls = [
        _other(stub, random.choice(others), number % 2 == 0, begin + number / options.rate, tally)
        for number in range(num)
    ]
    calls += [
        _ask_victim(stub, victim, number % 2 == 0, begin + number / options.victim_rate, tally)
        for number in range(num_victim)
    ]
    await asyncio.gather(*calls)


async def _other(stub: RankingStub, user_id: str, ranks: bool, due: float, tally: _Tally) -> None:
    await asyncio.sleep(due - time.monotonic())
    try:
        await (_rank(stub, user_id) if ranks else _append(stub, user_id, 1))
        tally.seconds.append(time.monotonic() - due)
    except grpc.aio.AioRpcError as error:
        tally.failed[f"{error.code().name}: {error.details()}"] += 1


async def _ask_victim(stub: RankingStub, user_id: str, ranks: bool, due: float, tally: _Tally) -> None:
    await asyncio.sleep(due - time.monotonic())
    try:
        await (_rank(stub, user_id) if ranks else _append(stub, user_id, 1))
        tally.victim["OK"] += 1
    except grpc.aio.AioRpcError as error:
        tally.victim[error.code().name] += 1


async def _rank(stub: RankingStub, user_id: str) -> None:
    await stub.Rank(pb.RankRequest(user_id=user_id, candidates=range(1, 51)), timeout=_TIMEOUT_S)


async def _append(stub: RankingStub, user_id: str, num_events: int) -> None:
    request = pb.AppendEventsRequest(user_id=user_id)
    for number in range(num_events):
        request.events.add(item_id=1 + number % 100, actions=1, time_ms=_TIME_MS)
    await stub.AppendEvents(request, timeout=_TIMEOUT_S)


def _whole(redis: RedisServer, key: str) -> bytes:
    value = redis.command("GET", key)
    assert isinstance(value, bytes), "the user has no log"
    return value


def _row(name: str, control: _Tally, under: _Tally) -> DamagedRow:
    p50, p99 = np.percentile(np.array(control.seconds) * 1e3, (50, 99)).tolist()
    under_p50, under_p99 = np.percentile(np.array(under.seconds) * 1e3, (50, 99)).tolist()
    gets = ", ".join(f"{code} {count}" for code, count in sorted(under.victim.items()))
    failed = under.failed + control.failed
    asked = len(under.seconds) + under.failed.total()
    why = "; ".join(f"{count} {text}" for text, count in failed.most_common())
    return DamagedRow(name, p50, p99, under_p50, under_p99, asked, failed.total(), why, gets)


def _bars(rows: Sequence[DamagedRow], damaged_log: str) -> tuple[Bar, ...]:
    ratios = {row.fault: row.p99_ms / row.control_p99_ms for row in rows if row.fault != MASTER}
    worst = max(ratios, key=lambda fault: ratios[fault])
    wanted = "DATA_LOSS" if damaged_log == "refuse" else "OK"
    codes = {code.split()[0] for row in rows if row.fault in DAMAGES for code in row.user_gets.split(", ")}
    return (
        Bar.most("others' p99 over that without the fault", ratios[worst], 1.1, by=worst),
        Bar.most("failed requests of others", sum(row.failed for row in rows), 0),
        Bar.most(f"answers to the damaged user that are not {wanted}", len(codes - {wanted}), 0),
    )


def page(result: DamagedResult) -> Iterator[Part]:
    """A row for each fault."""
    yield headline(result.machine, result.commit)
    columns = ("fault", "control p50 ms", "p99", "p50 ms", "p99", "ratio of p99", "asked", "failed", "the user gets")
    rows = [
        (
            *(row.fault, as_number(row.control_p50_ms), as_number(row.control_p99_ms)),
            *(as_number(row.p50_ms), as_number(row.p99_ms), f"{row.p99_ms / row.control_p99_ms:.2f}"),
            *(str(row.asked), f"{row.failed} {row.why}".strip(), row.user_gets),
        )
        for row in result.rows
    ]
    yield Table(f"One user's damaged log, --damaged-log {result.damaged_log}", columns, rows)
    yield bar_table(result.bars)
    yield "\n".join(f"- {note}" for note in result.notes)

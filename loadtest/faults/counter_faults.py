"""What becomes of item counters in Redis under its faults: appends go on or are refused, ranks say when their counters
may lack events, and when the fault is over every replica has what a recount of the logs gives.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import Shape
from loadtest.faults.table import counters as counts_of
from loadtest.faults.world import Place, place, random_events
from mfalcon.counters.increments import counted, numbers
from mfalcon.counters.redis_records import name_of
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import HistoryMismatch, MFalconError, StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.chain import user_hash
from mfalcon.history.redis_log import LogOptions
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings
from mfalcon.types import Append, Events, Ids, RankRequest, no_events

T = TypeVar("T")
SHAPE = Shape("counted", num_layers=1, dim=16, num_heads=2)
HEAL_S = 30.0
"""When a row complains that counters are not what they must be."""
_ITEMS = 1_000
_EVENTS, _MORE = 200, 20
_NUM_USERS = 4
_NOW_MS = 2 * 10**12
_WAIT_S = 60.0
_POLL_S = 0.02
_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class CounterFault:
    """how: is it injected. tells: the metric that must move, by a part of its name. loses: users whose logs are gone.
    uncounted: what is appended meanwhile is written to the log alone.
    """

    name: str
    how: str
    inject: Callable[["Scene"], None]
    tells: str
    loses: int = 0
    uncounted: bool = False
    proxied: bool = False


@dataclass(frozen=True, slots=True)
class CounterRow:
    """append: what appends were answered during the fault, and the longest. stale: of ranks on both replicas, how many
    said that their counters may lack events. healed_s: after the fault, until all counters are equal to a recount; none
    of that is anybody's work but the next ranks' of each user.
    """

    fault: str
    how: str
    append: dict[str, int]
    append_max_ms: float
    ranks: int
    stale: int
    errors: dict[str, int]
    healed_s: float | None
    counters: dict[str, float]
    complaints: tuple[str, ...]


@dataclass(slots=True)
class Scene:
    """Two replicas on one Redis, and what they have acknowledged."""

    at: Place
    like: LikeRule
    engines: list[Engine] = field(default_factory=list)
    logs: dict[str, Events] = field(default_factory=dict)

    def key(self, what: str) -> str:
        """Something of the store of counters."""
        return self.at.keys.counters(name_of(self.like), what)

    @property
    def record(self) -> str:
        """The key of what was counted of the first user."""
        return self.key(f"user:{user_hash('user-0').hex()}")

    def log(self, user_id: str) -> str:
        """The key of a user's log."""
        return self.at.keys.log(user_hash(user_id))

    def truth(self, items: Ids) -> Ids:
        """A recount of what was acknowledged: int64 [num_items, 3]."""
        added = counted(np.concatenate([no_events(), *self.logs.values()]), self.like)
        found = dict(zip(added["item_id"].tolist(), numbers(added), strict=True))
        return np.array([found.get(item, np.zeros(3, np.int64)) for item in items.tolist()])


ALL_ITEMS: Ids = np.arange(1, _ITEMS + 1)


def _kill(scene: Scene) -> None:
    scene.at.server.kill()


def _freeze(scene: Scene) -> None:
    scene.at.server.freeze()


def _delay(scene: Scene) -> None:
    assert scene.at.proxy is not None
    scene.at.proxy.delay_s = 0.2


def _fill(scene: Scene) -> None:
    scene.at.server.command("CONFIG", "SET", "maxmemory", 1)


def _lose_store(scene: Scene) -> None:
    found = scene.at.server.command("KEYS", scene.key("*"))
    assert isinstance(found, list)
    scene.at.server.command("DEL", *(name for name in found if isinstance(name, bytes)))


def _trim(scene: Scene) -> None:
    """And one change more, which makes the others' gap seen."""
    scene.at.server.command("XTRIM", scene.key("stream"), "MAXLEN", 0)
    scene.at.server.command("HINCRBY", scene.key("state"), "version", 5)


def _spoil(scene: Scene) -> None:
    scene.at.server.command("RENAME", scene.record, scene.record + ":away")
    scene.at.server.command("SET", scene.record, "no record")


def _lose_log(scene: Scene) -> None:
    scene.at.server.command("DEL", scene.log("user-0"))


def _nothing(_: Scene) -> None:
    """The replica is thought to die each time between the log and the counters."""


FAULTS = (
    CounterFault("killed", "SIGKILL, append-only file", _kill, "redis_errors"),
    CounterFault("frozen", "SIGSTOP", _freeze, "redis_errors"),
    CounterFault("slow: 200 ms", "proxy delays each reply", _delay, "redis_errors", proxied=True),
    CounterFault("out of memory", "CONFIG SET maxmemory 1 (noeviction)", _fill, "oom}"),
    CounterFault("counters lost", "DEL of the whole store", _lose_store, "counters_copied"),
    CounterFault("changes lost", "XTRIM, a version of changes that nobody saw", _trim, "counters_copied"),
    CounterFault("one record spoilt", "another value in its place for a while", _spoil, "counters_failed"),
    CounterFault("one log lost", "DEL", _lose_log, "counters_swept", loses=1),
    CounterFault("died before counting", "append to the log alone", _nothing, "counted_events", uncounted=True),
)


def counting_checkpoint() -> Checkpoint:
    """A small random one that reads item counters."""
    return random_checkpoint(SHAPE, _ITEMS, max_history=256, with_counters=True)


async def measure(fault: CounterFault, checkpoint: Checkpoint) -> CounterRow:
    """Inject one fault, append and rank under it, lift it and wait until all is well."""
    like = LikeRule.of(checkpoint.model.config)
    with place(proxied=fault.proxied, append_only=True) as at:
        scene, complaints = Scene(at, like), list[str]()
        async with AsyncExitStack() as stack:
            for _ in range(2):
                scene.engines.append(await _engine(checkpoint, at, stack))
            for number in range(_NUM_USERS):
                events = random_events(number, _EVENTS)
                user_id, engine = f"user-{number}", scene.engines[number % 2]
                with suppress(HistoryMismatch):  # an append without an answer was written, and is asked again
                    await _patiently(partial(engine.append_events, user_id, Append(events, 0)))
                scene.logs[user_id] = events
            if await _healed(scene) is None:
                complaints.append("the counters were not right before the fault")
            for user_id in scene.logs:  # each replica knows each log
                for engine in scene.engines:
                    await _patiently(partial(engine.rank, _request(user_id, 1), None))
            before = sum((counts_of(engine.metrics) for engine in scene.engines), Counter[str]())
            await asyncio.to_thread(fault.inject, scene)
            for number in range(fault.loses):
                scene.logs.pop(f"user-{number}")
            appended, longest = await _append(scene, fault)
            ranks, stale, errors = await _rank(scene, complaints)
            await asyncio.to_thread(_lift, scene)
            healed = await _healed(scene, after_fault=True)
            if healed is None:
                complaints.append(f"the counters are no recount of the logs after {HEAL_S:g} s")
            counters = await _moved(scene, before, fault.tells)
    if not any(fault.tells in name for name in counters):
        complaints.append(f"no counter {fault.tells} moved")
    of_ranks = (ranks, stale, dict(errors))
    row = (fault.name, fault.how, dict(appended), 1e3 * longest, *of_ranks, healed, counters, tuple(complaints))
    return CounterRow(*row)


async def _engine(checkpoint: Checkpoint, at: Place, stack: AsyncExitStack) -> Engine:
    redis = RedisOptions(RedisSettings(at.url), prefix=at.keys.prefix, log=LogOptions(serve_stale=True))
    config = EngineConfig(threads=1, ranker=RankerOptions(microbatch=64), histories=HistoryOptions(redis=redis))
    engine = compose(checkpoint, config)
    await asyncio.to_thread(engine.wait_ready, _WAIT_S)
    await engine.start()
    stack.push_async_callback(engine.close)
    return engine


async def _append(scene: Scene, fault: CounterFault) -> tuple[Counter[str], float]:
    """Some events more of every user. What may have been written is known later, by the log."""
    answers, longest = Counter[str](), 0.0
    for number, user_id in enumerate(list(scene.logs)):
        log, engine = scene.logs[user_id], scene.engines[number % 2]
        events = random_events(100 + number, _MORE, int(log["time_ms"][-1]))
        append, began = Append(events, len(log)), time.monotonic()
        try:
            if fault.uncounted:
                await engine.histories.log.append(user_id, append, None)
            else:
                await engine.append_events(user_id, append, began + _DEADLINE_S)
        except MFalconError as error:
            answers[type(error).__name__] += 1
        else:
            answers["acknowledged"] += 1
            scene.logs[user_id] = np.concatenate([log, events])
        longest = max(longest, time.monotonic() - began)
    return answers, longest


async def _rank(scene: Scene, complaints: list[str]) -> tuple[int, int, Counter[str]]:
    """Each user on both replicas: an answer, and whether it said that its counters may lack events."""
    ranks, stale, errors = 0, 0, Counter[str]()
    for user_id in scene.logs:
        for engine in scene.engines:
            ranks += 1
            try:
                result = await engine.rank(_request(user_id, 64), time.monotonic() + _DEADLINE_S)
            except MFalconError as error:
                errors[type(error).__name__] += 1
                continue
            stale += result.counters_stale
            if not np.isfinite(result.scores).all():
                complaints.append(f"{user_id}: a score that is no finite number")
    return ranks, stale, errors


def _request(user_id: str, num: int) -> RankRequest:
    return RankRequest(user_id, ALL_ITEMS[:num], 10, _NOW_MS, no_events(), {})


def _lift(scene: Scene) -> None:
    at = scene.at
    at.server.thaw()
    if not at.server.running:
        at.server.start()
    at.server.command("CONFIG", "SET", "maxmemory", 0)
    if at.proxy is not None:
        at.proxy.delay_s = 0.0
    if at.server.command("EXISTS", scene.record + ":away"):
        at.server.command("RENAME", scene.record + ":away", scene.record)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """As often as it takes: on a busy machine a healthy Redis may be late. An append names the length that it knows."""
    end = time.monotonic() + HEAL_S
    while True:
        try:
            return await call()
        except StorageUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(_POLL_S)


async def _read_logs(scene: Scene) -> None:
    """What is in the logs now: an append without an answer may have been written."""
    for user_id in scene.logs:

        async def read(user_id: str = user_id) -> Events:
            reading = await scene.engines[0].histories.log.read(user_id, 1.0)
            if reading.stale:
                raise StorageUnavailable("the log cannot be asked")
            return reading.history.events

        scene.logs[user_id] = await _patiently(read)


async def _moved(scene: Scene, before: Counter[str], awaited: str) -> dict[str, float]:
    """By how much the counts of both replicas have grown, once the awaited one has: it may follow the deed."""
    end = time.monotonic() + HEAL_S
    while True:
        counts = sum((counts_of(engine.metrics) for engine in scene.engines), Counter[str]())
        moved: dict[str, float] = {
            name: count - before[name] for name, count in sorted(counts.items()) if count > before[name]
        }
        if any(awaited in name for name in moved) or time.monotonic() > end:
            return moved
        await asyncio.sleep(_POLL_S)


async def _healed(scene: Scene, *, after_fault: bool = False) -> float | None:
    """Seconds until both replicas have a recount of the logs and say so; each user is ranked again and again meanwhile.
    after_fault: an append without an answer may still be written, once Redis comes to it.
    """
    began = time.monotonic()
    while time.monotonic() - began < HEAL_S:
        if after_fault:
            await _read_logs(scene)
        for user_id in scene.logs:
            await _patiently(partial(scene.engines[1].rank, _request(user_id, 1), None))
        truth = scene.truth(ALL_ITEMS)
        found = [engine.histories.counters.read(ALL_ITEMS) for engine in scene.engines]
        if all(not each.stale and np.array_equal(each.numbers[scene.like], truth) for each in found):
            return time.monotonic() - began
        await asyncio.sleep(_POLL_S)
    return None

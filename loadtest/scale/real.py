"""The same trace on real replicas on this machine: what they answer a second, and where they find states.

The replicas, Redis, and who asks share the machine's cores, with whatever else runs there; so what they had of the
cores is measured too, and throughput is counted for that.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loadtest.faults.fleet import Fleet
from loadtest.faults.redis_server import RedisServer
from loadtest.load.trace import Append, Rank, Step, TraceOptions, time_ms, trace
from loadtest.scale.calibrate import FLAGS, REDIS_FLAGS
from loadtest.scale.caller import Caller, cpu_s
from loadtest.scale.fleet import replica_name, user_id
from loadtest.scale.outcome import Outcome
from mfalcon.errors import CallFailed
from mfalcon.models.checkpoint import load
from proto import ranking_pb2 as pb

_SOURCES: dict[int, Outcome] = {pb.CacheInfo.HOST: "host", pb.CacheInfo.REDIS: "redis", pb.CacheInfo.NONE: "none"}


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """pool_mb: of each replica, for states. clients: users who are served at once. warm: ranks of the beginning, which
    are in no figure. The trace has neither deletes nor edits.
    """

    num_replicas: int = 4
    pool_mb: int = 1_024
    has_redis: bool = False
    clients: int = 8
    warm: int = 100
    num_users: int = 150
    num_requests: int = 700
    candidates: int = 500
    min_history: int = 64
    max_history: int = 2_048
    seed: int = 0

    @property
    def trace(self) -> TraceOptions:
        """What is played."""
        return TraceOptions(
            num_users=self.num_users,
            num_requests=self.num_requests,
            num_candidates=self.candidates,
            min_history=self.min_history,
            max_history=self.max_history,
            delete_share=0.0,
            edit_share=0.0,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """cores: that the replicas, Redis and who asks had, CPU seconds a second. errors: by status."""

    seconds: float
    counts: dict[Outcome, int]
    errors: dict[str, int]
    encoded: int
    cores: float
    p50_s: float
    p99_s: float

    @property
    def answered(self) -> int:
        """Ranks with scores."""
        return sum(self.counts.values())


def steps_of(path: Path, options: CheckOptions) -> list[Step]:
    """The trace over a checkpoint's items."""
    return list(trace(options.trace, np.asarray(load(path).items.item_id)))


def measure(path: Path, options: CheckOptions, steps: Sequence[Step]) -> Measured:
    """Start replicas of a checkpoint, play the trace on them and end them. Raises EngineFailure."""
    flags: tuple[str, ...] = (*FLAGS, "--kv-budget-mb", str(options.pool_mb))
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer()) if options.has_redis else None
        if redis is not None:
            flags += (*REDIS_FLAGS, "--redis-url", redis.url)
        fleet = stack.enter_context(Fleet(path, options.num_replicas, flags))
        pids = fleet.pids + ((redis.pid,) if redis is not None else ())
        return asyncio.run(_Run(steps, options, pids).play(fleet.targets))


class _Run:
    def __init__(self, steps: Sequence[Step], options: CheckOptions, pids: tuple[int, ...]) -> None:
        self._steps = steps
        self._options = options
        self._pids = pids
        self._counts: Counter[Outcome] = Counter()
        self._errors: Counter[str] = Counter()
        self._taken: list[float] = []
        self._encoded = self._ended = 0
        self._began = self._cpu_s = 0.0

    async def play(self, targets: Sequence[str]) -> Measured:
        """As `loadtest/load/replay_trace.py` plays it on engines: a user's steps in order, some users at once."""
        slots = asyncio.Semaphore(self._options.clients)
        latest: dict[int, asyncio.Task[None]] = {}

        async def turn(step: Step, before: "asyncio.Task[None] | None") -> None:
            try:
                if before is not None:
                    await asyncio.wait([before])
                await self._do(caller, step)
            except CallFailed as error:
                self._errors[error.code] += 1
            finally:
                slots.release()

        self._restart()
        async with Caller(targets, [replica_name(number) for number in range(len(targets))]) as caller:
            async with asyncio.TaskGroup() as group:
                for step in self._steps:
                    await slots.acquire()
                    latest[step.user] = group.create_task(turn(step, latest.get(step.user)))
            seconds, cpu = time.monotonic() - self._began, self._all_cpu_s() - self._cpu_s
        p50, p99 = np.percentile(self._taken or [0.0], (50, 99)).tolist()
        counts: dict[Outcome, int] = {name: self._counts[name] for name in _SOURCES.values()}
        return Measured(seconds, counts, dict(self._errors), self._encoded, cpu / seconds, p50, p99)

    async def _do(self, caller: Caller, step: Step) -> None:
        user = user_id(step.user)
        match step:
            case Append():
                await caller.append(user, step.events)
            case Rank():
                began = time.monotonic()
                answer = await caller.rank(user, step.candidates, time_ms(step.time_s))
                self._ended += 1
                if self._ended > self._options.warm:
                    self._taken.append(time.monotonic() - began)
                    self._counts[_SOURCES[answer.cache.source]] += 1
                    self._encoded += answer.cache.encoded_tokens
                elif self._ended == self._options.warm:
                    self._restart()

    def _restart(self) -> None:
        self._began, self._cpu_s = time.monotonic(), self._all_cpu_s()

    def _all_cpu_s(self) -> float:
        return cpu_s(self._pids) + time.process_time()

"""What a reload costs the requests around it: a server that exchanges two versions of a model while clients ask.

Each client ranks users of its own, appends to them and deletes one now and then, in a closed loop. Every answer is held
against a cold forward of the version that it names, over the history that it had to see.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
import numpy as np

from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.load.messages import append_message, rank_message, rank_result
from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, Events, Ids
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import AdminStub, RankingStub

NOTES = (
    "clients run on the same machine and share its cores with the server; each waits between calls",
    "steady: calls that end while no reload is under way, later than 2 s after the last one",
    "loading: calls from the beginning of a reload until the first answer of the new version",
    "after: calls of the 2 s from then on",
    "memory: resident, of the server, after the first exchange and after the last",
)
PHASES = ("steady", "loading", "after")

_AFTER_S = 2.0
_CALL_TIMEOUT_S = 30.0
_DAY_MS = 86_400_000
_CHECKED = 0.05
"""Share of the ranks whose answers are held against the oracle."""


@dataclass(frozen=True, slots=True)
class ReloadOptions:
    """directories: of the versions, which take turns. pause_s: between two reloads. num_users: of all clients, as is
    per_second, the calls at most: a device that is never idle warms nobody.
    """

    directories: tuple[str, ...]
    num_reloads: int = 20
    pause_s: float = 4.0
    num_clients: int = 8
    num_users: int = 200
    num_events: int = 512
    num_candidates: int = 100
    per_second: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """Latency of the ranks of a phase; see NOTES."""

    phase: str
    num_calls: int
    p50_ms: float
    p99_ms: float
    encoded_share: float


@dataclass(frozen=True, slots=True)
class ReloadResult:
    """Everything that `mfalcon bench reload` knows of one server. worst_error: of the answers that were checked."""

    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    num_reloads: int
    reload_s: float
    num_calls: int
    num_failed: int
    num_checked: int
    num_wrong: int
    worst_error: float
    memory_before_mb: float
    memory_after_mb: float
    phases: tuple[PhaseRow, ...]


@dataclass(frozen=True, slots=True)
class ReloadResults:
    """One server after the other, by name."""

    benchmark: str
    servers: dict[str, ReloadResult]


@dataclass(frozen=True, slots=True)
class _Call:
    ended: float
    seconds: float
    encoded: int
    version: str


@dataclass(slots=True)
class _Seen:
    """What clients and the exchanges left. swaps: beginning of each reload, and the first answer of its version."""

    calls: list[_Call] = field(default_factory=list)
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    num_calls: int = 0
    took: list[float] = field(default_factory=list)
    begun: list[tuple[float, str]] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)


def run(
    options: ReloadOptions,
    target: str,
    admin: str,
    memory: Callable[[], float],
    versions: Mapping[str, Checkpoint],
    progress: Callable[[str], None],
) -> ReloadResult:
    """Measure a running server. memory: its resident MiB. versions: by the first characters of their fingerprint, as an
    answer names them.
    """
    seen = _Seen()
    asyncio.run(_run(options, target, admin, memory, seen, progress))
    progress(f"checking {len(seen.answers)} answers")
    errors: dict[Answer, float] = {}
    for version, checkpoint in versions.items():
        named = [answer for name, answer in seen.answers if name == version]
        errors |= score_errors(checkpoint, named, threads=1)
    for _, answer in seen.answers:
        errors.setdefault(answer, float("inf"))  # of a version that nobody served
    return ReloadResult(
        machine=this_machine(),
        commit=commit(),
        notes=NOTES,
        num_reloads=len(seen.took),
        reload_s=float(np.median(seen.took)),
        num_calls=seen.num_calls,
        num_failed=len(seen.failed),
        num_checked=len(errors),
        num_wrong=sum(error > BOUND for error in errors.values()),
        worst_error=max(errors.values(), default=0.0),
        memory_before_mb=seen.memory[0],
        memory_after_mb=seen.memory[-1],
        phases=_phases(seen),
    )


async def _run(
    options: ReloadOptions,
    target: str,
    admin: str,
    memory: Callable[[], float],
    seen: _Seen,
    progress: Callable[[str], None],
) -> None:
    async with grpc.aio.insecure_channel(target) as channel, grpc.aio.insecure_channel(admin) as admin_channel:
        stub, stop, life = RankingStub(channel), asyncio.Event(), secrets.token_hex(4)
        per_client = max(1, options.num_users // options.num_clients)
        clients = [
            asyncio.create_task(_client(stub, options, f"reload-{life}-{number}", per_client, number, stop, seen))
            for number in range(options.num_clients)
        ]
        await asyncio.sleep(options.pause_s)
        for number, directory in zip(range(options.num_reloads), itertools.cycle(options.directories), strict=False):
            began = time.monotonic()
            reply = await AdminStub(admin_channel).Reload(pb.ReloadRequest(checkpoint=directory), timeout=600)
            seen.took.append(time.monotonic() - began)
            seen.begun.append((began, reply.version))
            progress(f"reload {number + 1} of {options.num_reloads}: {seen.took[-1]:.1f} s")
            await asyncio.sleep(options.pause_s)
            if number in (1, options.num_reloads - 1):
                seen.memory.append(memory())
        stop.set()
        await asyncio.gather(*clients)


async def _client(
    stub: RankingStub, options: ReloadOptions, name: str, num_users: int, seed: int, stop: asyncio.Event, seen: _Seen
) -> None:
    rng = np.random.default_rng((options.seed, seed))
    users = [f"{name}-{number}" for number in range(num_users)]
    lives: dict[str, Life] = {}
    try:
        while not stop.is_set():
            await asyncio.sleep(rng.exponential(options.num_clients / options.per_second))
            user = users[int(rng.integers(num_users))]
            seen.num_calls += 1
            try:
                await _ask(stub, options, user, lives, rng, seen)
            except grpc.aio.AioRpcError as error:
                seen.failed.append(f"{error.code().name}: {error.details()}")
    finally:
        for user in users:
            await stub.DeleteUser(pb.DeleteUserRequest(user_id=user), timeout=_CALL_TIMEOUT_S)


async def _ask(
    stub: RankingStub,
    options: ReloadOptions,
    user: str,
    lives: dict[str, Life],
    rng: np.random.Generator,
    seen: _Seen,
) -> None:
    """A rank, mostly; of a user that is not known an append of a whole history."""
    what = rng.random()
    if user not in lives or what < 0.05:
        life = lives.setdefault(user, Life())
        events = _events(rng, life, 1 if life.size else options.num_events)
        await stub.AppendEvents(append_message(user, events, life.size), timeout=_CALL_TIMEOUT_S)
        life.add(events)
    elif what < 0.055:
        await stub.DeleteUser(pb.DeleteUserRequest(user_id=user), timeout=_CALL_TIMEOUT_S)
        del lives[user]
    else:
        now, candidates = time.time_ns() // 1_000_000, _items(rng, options.num_candidates)
        message = rank_message(user, candidates, request_time_ms=now)
        asked = time.monotonic()
        reply = await stub.Rank(message, timeout=_CALL_TIMEOUT_S)
        ended = time.monotonic()
        seen.calls.append(_Call(ended, ended - asked, reply.cache.encoded_tokens, reply.model_version))
        if rng.random() < _CHECKED:
            life, result = lives[user], rank_result(reply)
            answer = Answer(user, life, life.size, now, candidates, result.task_scores)
            seen.answers.append((reply.model_version, answer))


def _events(rng: np.random.Generator, life: Life, num_events: int) -> Events:
    events = np.zeros(num_events, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = _items(rng, num_events), 1, 3.0
    last = int(life.parts[-1]["time_ms"][-1]) if life.parts else time.time_ns() // 1_000_000 - 7 * _DAY_MS
    events["time_ms"] = last + 1 + np.arange(num_events)
    return events


def _items(rng: np.random.Generator, num_items: int) -> Ids:
    return rng.integers(1, 1_683, num_items)


def _phases(seen: _Seen) -> tuple[PhaseRow, ...]:
    """Calls by phase; before the second exchange users are new, so nothing is counted."""
    phases: dict[str, list[_Call]] = {phase: [] for phase in PHASES}
    swaps = []
    for began, version in seen.begun:
        first = min(
            (call.ended for call in seen.calls if call.ended >= began and call.version == version), default=began
        )
        swaps.append((began, first))
    counted_from = swaps[1][0] if len(swaps) > 1 else 0.0
    for call in seen.calls:
        if call.ended < counted_from:
            continue
        phase = "steady"
        for began, first in swaps:
            if began <= call.ended < first:
                phase = "loading"
            elif first <= call.ended < first + _AFTER_S:
                phase = "after"
        phases[phase].append(call)
    return tuple(_row(phase, calls) for phase, calls in phases.items() if calls)


def _row(phase: str, calls: list[_Call]) -> PhaseRow:
    p50, p99 = np.percentile([call.seconds for call in calls], (50, 99)) * 1e3
    encoded = sum(call.encoded > 1 for call in calls) / len(calls)
    return PhaseRow(phase, len(calls), float(p50), float(p99), encoded)

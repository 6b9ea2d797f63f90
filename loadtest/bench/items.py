"""What a stream of item deltas costs the requests beside it, and what they answer meanwhile.

Clients rank at a given rate, in turns with deltas and without, so that both see the same machine. Of the answers some
are held against a cold forward with the table that they name, which is made again from the deltas.
"""

import asyncio
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Literal, TypeAlias

import grpc
import numpy as np
import torch

from loadtest.faults.known_users import known_users
from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.load.messages import rank_message, rank_result
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from mfalcon.items.delta import Delta
from mfalcon.items.delta_file import write_delta
from mfalcon.items.messages import messages
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Ids, ItemsPolicy
from proto.ranking_pb2_grpc import RankingStub

NOTES = (
    "clients, and the sender of deltas as a process of its own of low priority, run on the same machine and share its "
    "cores with the server",
    "others: rows of items that stand in no history, half of the candidates among them; anywhere: of any item",
    "checked: answers held against a cold forward with the table of the version that they name; not with frozen, whose "
    "histories have the rows of their encoding",
    "encoded: tokens that a rank encoded, of those that it saw",
    "new items: from the end of writing their delta into the watched directory until a rank knows all of them",
)
P99_RATIO = 1.10
NEW_ITEMS_S = 2.0

Where = Literal["others", "anywhere"]
Orders: TypeAlias = "SimpleQueue[float | None]"
"""Seconds to send for, None for the end."""
Reports: TypeAlias = "SimpleQueue[tuple[float, list[float]]]"
"""Seconds that it took, and those of each delta."""
_CALL_TIMEOUT_S = 30.0
_POOL = 24
"""Different deltas, which take turns."""
_STD = 0.2
_NICE = 10


@dataclass(frozen=True, slots=True)
class ItemsOptions:
    """rows_per_second: of deltas of rows_per_delta each. seconds: with deltas, and as many without, in num_turns turns.
    num_known: items that histories are made of, from 1 on. per_second: ranks of all clients. checked: share of the
    ranks that are held against the oracle.
    """

    rows_per_second: int = 100_000
    rows_per_delta: int = 10_000
    seconds: float = 60.0
    num_turns: int = 6
    num_items: int = 200_000
    num_known: int = 2_000
    num_users: int = 64
    num_events: int = 256
    num_candidates: int = 200
    per_second: float = 40.0
    num_clients: int = 4
    checked: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TurnRow:
    """Ranks of one turn."""

    is_patched: bool
    num_calls: int
    p50_ms: float
    p99_ms: float
    encoded_share: float


@dataclass(frozen=True, slots=True)
class StreamResult:
    """Of one server. rows_per_second: that were served. p99_ratio: median of the patched turns over that of others."""

    where: Where
    policy: ItemsPolicy
    rows_per_second: float
    num_deltas: int
    delta_ms: float
    num_versions: int
    num_failed: int
    num_checked: int
    num_wrong: int
    worst_error: float
    p50_ratio: float
    p99_ratio: float
    turns: tuple[TurnRow, ...]


@dataclass(frozen=True, slots=True)
class ItemsResult:
    """Everything that `mfalcon bench items` knows. new_items_s: of each time that some came."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    streams: tuple[StreamResult, ...]
    num_new: int
    new_items_s: tuple[float, ...]
    bars: tuple[Bar, ...]


@dataclass(slots=True)
class _Seen:
    calls: list[tuple[int, float, int, int]] = field(default_factory=list)
    """Turn, seconds, tokens that were encoded, and reused."""
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    delta_s: list[float] = field(default_factory=list)
    patched_s: float = 0.0
    turn: int = -1


def stream(
    options: ItemsOptions, where: Where, policy: ItemsPolicy, target: str, admin: str, checkpoint: Checkpoint
) -> StreamResult:
    """Measure a running server of this checkpoint, whose policy that is. The checkpoint is changed on the way."""
    made_of = checkpoint.model.config.dim, checkpoint.fingerprint[:12]
    seen, deltas = _Seen(), _deltas(options, where, *made_of)
    with _sender(options, where, *made_of, admin) as (orders, reports):
        asyncio.run(_run(options, target, orders, reports, seen))
    errors = {} if policy == "frozen" else _errors(checkpoint, deltas, seen.answers)
    turns = tuple(_row(seen, turn) for turn in range(2 * options.num_turns))
    ratios = [_ratio(turns, name) for name in ("p50_ms", "p99_ms")]
    return StreamResult(
        where=where,
        policy=policy,
        rows_per_second=len(seen.delta_s) * options.rows_per_delta / seen.patched_s,
        num_deltas=len(seen.delta_s),
        delta_ms=1e3 * float(np.median(seen.delta_s)),
        num_versions=len(seen.versions),
        num_failed=len(seen.failed),
        num_checked=len(errors),
        num_wrong=sum(error > BOUND for error in errors.values()),
        worst_error=max(errors.values(), default=0.0),
        p50_ratio=ratios[0],
        p99_ratio=ratios[1],
        turns=turns,
    )


def new_items(
    options: ItemsOptions, target: str, directory: Path, checkpoint: Checkpoint, num: int, times: int
) -> list[float]:
    """Seconds until items that come by the watched directory of a running server are known to a rank."""
    rng = np.random.default_rng(options.seed)

    async def ask(stub: RankingStub, ids: Ids) -> float:
        began = time.monotonic()
        while time.monotonic() - began < _CALL_TIMEOUT_S:
            reply = await stub.Rank(rank_message("new", ids, request_time_ms=0), timeout=_CALL_TIMEOUT_S)
            if not reply.unknown:
                return time.monotonic() - began
            await asyncio.sleep(0.01)
        return float("inf")

    async def all_of() -> list[float]:
        found = []
        async with grpc.aio.insecure_channel(target) as channel:
            for number in range(1, times + 1):
                ids = options.num_items * (number + 1) + np.arange(num)
                vector = rng.normal(size=(num, checkpoint.model.config.dim), scale=_STD).astype(np.float32)
                write_delta(directory, Delta(number, checkpoint.fingerprint, ids, vector))
                found.append(await ask(RankingStub(channel), ids))
                await asyncio.sleep(0.3 * float(rng.random()))
        return found

    return asyncio.run(all_of())


def result_of(
    streams: Sequence[StreamResult], num_new: int, seconds: Sequence[float], options: ItemsOptions
) -> ItemsResult:
    """All of it, with its bars."""
    exact = [one for one in streams if one.policy == "exact"]
    others = next((one for one in streams if one.where == "others"), None)
    slowest = min((one.rows_per_second for one in streams), default=None)
    bars = (
        Bar.least("rows a second", slowest, 0.98 * options.rows_per_second),
        Bar.most("answers that are not their table's", float(sum(one.num_wrong for one in exact)), 0),
        Bar.most("requests that failed", float(sum(one.num_failed for one in streams)), 0),
        Bar.most("p99 beside deltas of other items / without", others.p99_ratio if others else None, P99_RATIO),
        Bar.most(f"{num_new} new items ranked, worst s", max(seconds, default=None), NEW_ITEMS_S),
    )
    return ItemsResult("items", this_machine(), commit(), NOTES, tuple(streams), num_new, tuple(seconds), bars)


async def _run(options: ItemsOptions, target: str, orders: Orders, reports: Reports, seen: _Seen) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        stub, stop = RankingStub(channel), asyncio.Event()
        lives = await known_users(
            stub, options.num_users, options.num_events, options.num_known, options.seed, _CALL_TIMEOUT_S
        )
        clients = [
            asyncio.create_task(_client(stub, options, lives, number, stop, seen))
            for number in range(options.num_clients)
        ]
        await asyncio.sleep(2.0)
        for turn in range(2 * options.num_turns):
            seen.turn, ends = turn, time.monotonic() + options.seconds / options.num_turns
            if turn % 2:
                orders.put(ends - time.monotonic())
                took, delta_s = await asyncio.to_thread(reports.get)
                seen.patched_s += took
                seen.delta_s += delta_s
            else:
                await asyncio.sleep(max(0.0, ends - time.monotonic()))
        seen.turn = -1
        stop.set()
        await asyncio.gather(*clients)


@contextmanager
def _sender(
    options: ItemsOptions, where: Where, dim: int, version: str, admin: str
) -> Iterator[tuple[Orders, Reports]]:
    """A process that sends deltas for as many seconds as it is told, and then says how long that took, and each."""
    context = get_context("spawn")
    orders, reports = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=_send, args=(options, where, dim, version, admin, orders, reports))
    process.start()
    try:
        reports.get()
        yield orders, reports
        orders.put(None)
    finally:
        process.join(_CALL_TIMEOUT_S)
        process.kill()


def _send(
    options: ItemsOptions, where: Where, dim: int, version: str, admin: str, orders: Orders, reports: Reports
) -> None:
    """It stands for another machine, and leaves the cores of this one to the server and its clients."""
    os.nice(_NICE)
    raw = [
        [part.SerializeToString() for part in messages("", delta)] for delta in _deltas(options, where, dim, version)
    ]
    turns = itertools.cycle(raw)
    with grpc.insecure_channel(admin) as channel:
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(
            "/mfalcon.v1.Admin/UpdateItems", request_serializer=None, response_deserializer=None
        )
        reports.put((0.0, []))
        while (seconds := orders.get()) is not None:
            began, took = time.monotonic(), list[float]()
            due = began
            while (now := time.monotonic()) < began + seconds:
                if now < due:  # one that is late is not waited for, the next ones catch up
                    time.sleep(due - now)
                sent = time.monotonic()
                call(iter(next(turns)), timeout=_CALL_TIMEOUT_S)
                took.append(time.monotonic() - sent)
                due += options.rows_per_delta / options.rows_per_second
            reports.put((time.monotonic() - began, took))


async def _client(
    stub: RankingStub, options: ItemsOptions, lives: dict[str, Life], number: int, stop: asyncio.Event, seen: _Seen
) -> None:
    rng, users = np.random.default_rng((options.seed, number)), list(lives)
    while not stop.is_set():
        await asyncio.sleep(rng.exponential(options.num_clients / options.per_second))
        user, turn, now = users[int(rng.integers(len(users)))], seen.turn, time.time_ns() // 1_000_000
        half = options.num_candidates // 2
        candidates = np.concatenate(
            [
                rng.integers(1, options.num_known + 1, half),
                rng.integers(1, options.num_items + 1, options.num_candidates - half),
            ]
        )
        asked = time.monotonic()
        try:
            reply = await stub.Rank(rank_message(user, candidates, request_time_ms=now), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            seen.failed.append(f"{error.code().name}: {error.details()}")
            continue
        if turn >= 0 and turn == seen.turn:
            cache = reply.cache
            seen.calls.append((turn, time.monotonic() - asked, cache.encoded_tokens, cache.reused_tokens))
        seen.versions.add(reply.items_version)
        if rng.random() < options.checked:
            result, life = rank_result(reply), lives[user]
            answer = Answer(user, life, life.size, now, candidates, result.task_scores)
            seen.answers.append((reply.items_version, answer))


def _deltas(options: ItemsOptions, where: Where, dim: int, version: str) -> list[Delta]:
    rng = np.random.default_rng(options.seed + 1)
    first = options.num_known + 1 if where == "others" else 1
    deltas = []
    for _ in range(_POOL):
        ids = rng.choice(np.arange(first, options.num_items + 1), options.rows_per_delta, replace=False)
        vector = rng.normal(size=(options.rows_per_delta, dim), scale=_STD).astype(np.float32)
        deltas.append(Delta(0, version, ids, vector))
    return deltas


def _errors(
    checkpoint: Checkpoint, deltas: Sequence[Delta], answers: Sequence[tuple[str, Answer]]
) -> dict[Answer, float]:
    """Of each answer, from the table that it names, by the order of the tables."""
    weight, errors, number = checkpoint.model.items.id.weight, dict[Answer, float](), 0
    of_number: dict[int, list[Answer]] = {}
    for version, answer in answers:
        of_number.setdefault(int(version.partition("-")[0] or 0), []).append(answer)
    for wanted in sorted(of_number):
        with torch.no_grad():
            for index in range(number, wanted):
                delta = deltas[index % len(deltas)]
                assert delta.vector is not None
                weight[torch.from_numpy(checkpoint.items.rows(delta.item_id))] = torch.from_numpy(delta.vector)
        number = wanted
        errors |= score_errors(checkpoint, of_number[wanted], threads=1)
    return errors


def _row(seen: _Seen, turn: int) -> TurnRow:
    calls = [call for call in seen.calls if call[0] == turn]
    if not calls:
        return TurnRow(bool(turn % 2), 0, float("nan"), float("nan"), float("nan"))
    p50, p99 = np.percentile([call[1] for call in calls], (50, 99)) * 1e3
    encoded, reused = (sum(call[index] for call in calls) for index in (2, 3))
    return TurnRow(bool(turn % 2), len(calls), float(p50), float(p99), encoded / max(1, encoded + reused))


def _ratio(turns: Sequence[TurnRow], name: str) -> float:
    patched, others = ([getattr(row, name) for row in turns if row.is_patched == which] for which in (True, False))
    return float(np.median(patched) / np.median(others))

"""Graph vectors that are refreshed beside ranks: each answer is held against a cold forward with the version it names.

A server reads them from a watched directory, once with its transports in the engine's process and once behind
front-ends. Clients rank at a given rate, in turns without refreshes and with them.
"""

import asyncio
import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import torch

from loadtest.faults.known_users import known_users
from loadtest.faults.oracle import BOUND, Answer, Life, score_errors
from loadtest.load.messages import rank_message, rank_result
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from mfalcon.graph.vector_file import write_vectors
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models.checkpoint import Checkpoint
from proto.ranking_pb2_grpc import RankingStub

_CALL_TIMEOUT_S = 60.0
_POLL_S = 0.005
_TURNS = 4


@dataclass(frozen=True, slots=True)
class GraphOptions:
    """refreshes: of each server, pause_s apart at least. per_second: ranks of all clients."""

    refreshes: int = 100
    num_items: int = 20_000
    num_users: int = 32
    num_events: int = 100
    num_candidates: int = 200
    per_second: float = 40.0
    num_clients: int = 4
    pause_s: float = 0.2
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GraphRow:
    """One server. seen_ms: from the end of writing vectors until a rank names them. encoded: tokens that ranks encoded
    beside refreshes. p50, p99: in ms, without refreshes and beside them.
    """

    frontends: int
    num_versions: int
    num_answers: int
    num_failed: int
    num_wrong: int
    worst_error: float
    encoded: int
    seen_ms: float
    p50: tuple[float, float]
    p99: tuple[float, float]


@dataclass(frozen=True, slots=True)
class GraphResult:
    """Everything that `mfalcon bench graph` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: GraphOptions
    rows: tuple[GraphRow, ...]
    bars: tuple[Bar, ...]


@dataclass(slots=True)
class _Seen:
    calls: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    """Seconds, by whether vectors were refreshed beside."""
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    encoded: int = 0
    failed: int = 0
    beside: bool = False


def measure(options: GraphOptions, frontends: int, target: str, directory: Path, checkpoint: Checkpoint) -> GraphRow:
    """A running server of this checkpoint that watches the directory."""
    seen, refreshes = _Seen(), _refreshes(options, checkpoint)
    took = asyncio.run(_run(options, target, directory, refreshes, seen))
    errors = _errors(checkpoint, refreshes, seen.answers)
    both = seen.calls[False], seen.calls[True]
    return GraphRow(
        frontends=frontends,
        num_versions=len({version for version, _ in seen.answers}),
        num_answers=len(seen.answers),
        num_failed=seen.failed,
        num_wrong=sum(error > BOUND for error in errors),
        worst_error=max(errors, default=0.0),
        encoded=seen.encoded,
        seen_ms=1e3 * float(np.median(took)),
        p50=(_ms(both[0], 50), _ms(both[1], 50)),
        p99=(_ms(both[0], 99), _ms(both[1], 99)),
    )


def result_of(options: GraphOptions, rows: Sequence[GraphRow]) -> GraphResult:
    """All of it, with its bars."""
    bars = (
        Bar.least(
            "versions that answers name, of each server",
            float(min(row.num_versions for row in rows)),
            0.9 * options.refreshes,
        ),
        Bar.most("answers that are not their version's", float(sum(row.num_wrong for row in rows)), 0),
        Bar.most("requests that failed", float(sum(row.num_failed for row in rows)), 0),
        Bar.most("tokens encoded again beside refreshes", float(sum(row.encoded for row in rows)), 0),
    )
    return GraphResult("graph", this_machine(), commit(), options, tuple(rows), bars)


def _refreshes(options: GraphOptions, checkpoint: Checkpoint) -> list[GraphRefresh]:
    rng, graph = np.random.default_rng(options.seed), checkpoint.model.config.graph
    assert graph is not None
    size = len(checkpoint.items.item_id), graph.dim
    return [
        GraphRefresh(
            number,
            checkpoint.fingerprint,
            checkpoint.items.item_id,
            rng.normal(size=size, scale=0.5).astype(np.float32),
        )
        for number in range(1, options.refreshes + 1)
    ]


async def _run(
    options: GraphOptions, target: str, directory: Path, refreshes: Sequence[GraphRefresh], seen: _Seen
) -> list[float]:
    """Seconds until each refresh was named by a rank."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub, stop, took = RankingStub(channel), asyncio.Event(), list[float]()
        lives = await known_users(
            stub, options.num_users, options.num_events, options.num_items, options.seed, _CALL_TIMEOUT_S
        )
        for user in lives:  # whose histories are encoded from now on
            await stub.Rank(rank_message(user, np.array([1])), timeout=_CALL_TIMEOUT_S)
        clients = [
            asyncio.create_task(_client(stub, options, lives, number, stop, seen))
            for number in range(options.num_clients)
        ]
        for part in range(_TURNS):
            began = time.monotonic()
            seen.beside = True
            for refresh in _part(refreshes, part):
                await asyncio.to_thread(write_vectors, directory, refresh)
                took.append(await _named(stub, refresh.number))
                await asyncio.sleep(options.pause_s)
            seen.beside = False
            await asyncio.sleep(time.monotonic() - began)
        stop.set()
        await asyncio.gather(*clients)
        return took


def _part(refreshes: Sequence[GraphRefresh], part: int) -> Sequence[GraphRefresh]:
    size = -(-len(refreshes) // _TURNS)
    return refreshes[part * size : (part + 1) * size]


async def _named(stub: RankingStub, number: int) -> float:
    began, candidate = time.monotonic(), np.array([1])
    while time.monotonic() - began < _CALL_TIMEOUT_S:
        reply = await stub.Rank(rank_message("watch", candidate, request_time_ms=0), timeout=_CALL_TIMEOUT_S)
        if reply.graph_version.startswith(f"{number}-"):
            return time.monotonic() - began
        await asyncio.sleep(_POLL_S)
    return float("inf")


async def _client(
    stub: RankingStub, options: GraphOptions, lives: dict[str, Life], number: int, stop: asyncio.Event, seen: _Seen
) -> None:
    rng, users = np.random.default_rng((options.seed, number)), list(lives)
    while not stop.is_set():
        await asyncio.sleep(rng.exponential(options.num_clients / options.per_second))
        user, beside, now = users[int(rng.integers(len(users)))], seen.beside, time.time_ns() // 1_000_000
        candidates = rng.integers(1, options.num_items + 1, options.num_candidates)
        asked = time.monotonic()
        try:
            reply = await stub.Rank(rank_message(user, candidates, request_time_ms=now), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            seen.failed += 1
            continue
        seen.calls[beside].append(time.monotonic() - asked)
        seen.encoded += reply.cache.encoded_tokens
        life = lives[user]
        answer = Answer(user, life, life.size, now, candidates, rank_result(reply).task_scores)
        seen.answers.append((reply.graph_version, answer))


def _errors(
    checkpoint: Checkpoint, refreshes: Sequence[GraphRefresh], answers: Sequence[tuple[str, Answer]]
) -> list[float]:
    """Of each answer, from the version that it names; infinity of one that nobody wrote."""
    of_version: dict[str, list[Answer]] = {}
    for version, answer in answers:
        of_version.setdefault(version, []).append(answer)
    given = {f"{one.number}-{one.digest()}": one for one in refreshes}
    errors = list[float]()
    for version, same in of_version.items():
        refresh = given.get(version)
        if refresh is None and version:
            errors += [float("inf")] * len(same)
            continue
        table = checkpoint if refresh is None else _with_vectors(checkpoint, refresh)
        errors += score_errors(table, same, threads=1).values()
    return errors


def _with_vectors(checkpoint: Checkpoint, refresh: GraphRefresh) -> Checkpoint:
    assert checkpoint.model.graph is not None
    shared = {id(child): child for name, child in checkpoint.model.named_children() if name != "graph"}
    model = copy.deepcopy(checkpoint.model, dict[int, object](shared))
    assert model.graph is not None
    with torch.no_grad():
        model.graph.vectors[torch.from_numpy(checkpoint.items.rows(refresh.item_id))] = torch.from_numpy(refresh.vector)
    return replace(checkpoint, model=model)


def _ms(seconds: Sequence[float], percent: float) -> float:
    return float(np.percentile(seconds, percent)) * 1e3 if seconds else float("nan")

"""What the wire costs: ids that are text, answers with the top alone, in parts and in tensors, and several ranks in one
call, each beside what it is instead of, in turns.
"""

import asyncio
import math
import statistics
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc.aio
import httpx
import numpy as np

from loadtest.bench.wire_ways import other_ways
from loadtest.faults.server_process import ServerProcess
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread
from mfalcon.item_ids import item_ids
from mfalcon.models.manifest import load_items
from mfalcon.text_ids import TextIds, compiled_hash
from mfalcon.types import Ids
from mfalcon_client import AsyncClient, Event, Rank, Ranking
from proto import ranking_pb2, ranking_pb2_grpc

COMPILED, KNOWN, NEW, HASHED = "in one call", "seen before, without it", "never seen, without it", "one by one"
SINGLY, AT_ONCE, BATCH = "calls in turn", "calls at once", "one batch"
_NOW_MS = 1_700_000_000_000
_PATIENT_S = 60.0


@dataclass(frozen=True, slots=True)
class WireOptions:
    """texts: of a lookup. candidates, top_k: of the answers. users: of a batch, each with `ranked` candidates and
    `events` events. rounds: of each comparison.
    """

    texts: int = 1_000
    candidates: int = 16_000
    top_k: int = 10
    users: int = 32
    ranked: int = 100
    events: int = 100
    rounds: int = 40


@dataclass(frozen=True, slots=True)
class WireRow:
    """One way. num_bytes: of an answer, 0 where that is not compared."""

    what: str
    way: str
    took: Spread
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WireResult:
    """Everything that `mfalcon bench wire` knows."""

    options: WireOptions
    rows: tuple[WireRow, ...]
    bars: tuple[Bar, ...]
    machine: Machine
    commit: str | None


def run(checkpoint: Path, options: WireOptions, progress: Callable[[str], None]) -> WireResult:
    """Compare each."""
    machine = this_machine()
    progress(f"{options.texts:,} texts")
    rows = lookups(options)
    items = load_items(checkpoint).item_id
    with tempfile.TemporaryDirectory(prefix="mfalcon-wire-") as place, ServerProcess(checkpoint, Path(place)) as server:
        rows += asyncio.run(_asked(server, items, options, progress))
    compiled = next((row.took.median_ms for row in rows if row.way == COMPILED), math.inf)
    medians = {row.way: row.took.median_ms for row in rows if row.way in (SINGLY, AT_ONCE, BATCH)}
    instead = min(medians[SINGLY], medians[AT_ONCE])
    bars = (
        Bar.most(f"ms for {options.texts:,} texts", compiled, 0.3, COMPILED),
        Bar.least(f"rate of a batch of {options.users}, times that of calls", instead / medians[BATCH], 1.5, "medians"),
    )
    return WireResult(options, tuple(rows), bars, machine, commit())


def lookups(options: WireOptions) -> list[WireRow]:
    """Numbers of UUIDs that were never seen, by the transports' own way: in one call of C++, if it is compiled. Without
    it: by the look-up that takes its place, and by a hash of each.
    """
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {COMPILED: [], KNOWN: [], NEW: [], HASHED: []}
    ids, found = TextIds(), compiled_hash()
    for _ in range(options.rounds):
        texts = [str(uuid.UUID(bytes=random.bytes(16))) for _ in range(options.texts)]
        copies = [text.encode().decode() for text in texts]  # as from the wire: Python has no hash of them yet
        if found is not None:
            times[COMPILED].append(_ms(partial(TextIds(found).all, texts, "candidate_ids")))
        times[NEW].append(_ms(partial(ids.all, texts, "candidate_ids")))
        times[KNOWN].append(_ms(partial(ids.all, copies, "candidate_ids")))
        times[HASHED].append(_ms(partial(item_ids, texts)))
    return [WireRow("ids", way, _spread(each)) for way, each in times.items() if each]


async def _asked(
    server: ServerProcess, items: Ids, options: WireOptions, progress: Callable[[str], None]
) -> list[WireRow]:
    users = [f"user {number}" for number in range(options.users)]
    random = np.random.default_rng(0)
    async with (
        AsyncClient(server.grpc, timeout_s=_PATIENT_S) as client,
        httpx.AsyncClient(base_url=f"http://{server.http}", timeout=_PATIENT_S) as http,
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        for user in users:
            picked = random.choice(items, options.events)
            await client.append_events(user, [Event(int(item), _NOW_MS + at) for at, item in enumerate(picked)])
        progress(f"answers of {options.candidates:,} candidates")
        many = random.choice(items, options.candidates)
        rows = await _answers(channel, http, users[0], many, options)
        progress(f"{options.users} ranks")
        return rows + await _batches(client, users, random.choice(items, (options.users, options.ranked)), options)


async def _answers(
    channel: grpc.aio.Channel, http: httpx.AsyncClient, user: str, many: Ids, options: WireOptions
) -> list[WireRow]:
    """All scores and the top, the top alone, and the same by other ways."""
    stub = ranking_pb2_grpc.RankingStub(channel)

    def over_grpc(returns: str) -> Callable[[], Awaitable[int]]:
        request = ranking_pb2.RankRequest(user_id=user, candidates=many.tolist(), top_k=options.top_k)
        setattr(request, "return", returns)  # a keyword

        async def ask() -> int:
            answer: ranking_pb2.RankResponse = await stub.Rank(request)
            return answer.ByteSize()

        return ask

    def over_http(returns: str) -> Callable[[], Awaitable[int]]:
        body = {"user_id": user, "candidates": many.tolist(), "top_k": options.top_k, "return": returns}

        async def ask() -> int:
            answer = await http.post("/v1/rank", json=body)
            answer.raise_for_status()
            return len(answer.content)

        return ask

    ways: dict[str, Callable[[], Awaitable[int]]] = {
        f"{transport}, {returns}": make(returns)
        for transport, make in (("gRPC", over_grpc), ("HTTP", over_http))
        for returns in ("both", "top")
    } | other_ways(channel, http, user, many, options.top_k)
    sizes = {way: await ask() for way, ask in ways.items()}
    times = await _in_turns(ways, options.rounds)
    return [WireRow("answer", way, _spread(times[way]), sizes[way]) for way in ways]


async def _batches(client: AsyncClient, users: Sequence[str], candidates: Ids, options: WireOptions) -> list[WireRow]:
    """A rank of each user."""
    ranks = [Rank(user, ids, top_k=options.top_k) for user, ids in zip(users, candidates, strict=True)]

    async def singly() -> int:
        for rank in ranks:
            await client.rank(rank.user_id, rank.candidates, top_k=rank.top_k)
        return 0

    async def at_once() -> int:
        await asyncio.gather(*(client.rank(rank.user_id, rank.candidates, top_k=rank.top_k) for rank in ranks))
        return 0

    async def batch() -> int:
        outcomes = await client.rank_batch(ranks)
        assert all(isinstance(outcome, Ranking) for outcome in outcomes)
        return 0

    times = await _in_turns({SINGLY: singly, AT_ONCE: at_once, BATCH: batch}, options.rounds)
    return [WireRow(f"{len(users)} ranks", way, _spread(each)) for way, each in times.items() if each]


async def _in_turns(ways: Mapping[str, Callable[[], Awaitable[int]]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for ask in ways.values():
        await ask()  # states and connections are there from then on
    for _ in range(rounds):
        for way, ask in ways.items():
            began = time.perf_counter()
            await ask()
            times[way].append(1e3 * (time.perf_counter() - began))
    return times


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def _spread(times: Sequence[float]) -> Spread:
    return Spread(statistics.median(times), min(times), max(times), len(times))


def page(result: WireResult) -> list[Part]:
    """For people."""
    options = result.options
    rows = [(row.what, row.way, as_ms(row.took), f"{row.num_bytes:,}" if row.num_bytes else "-") for row in result.rows]
    told = (
        f"{options.texts:,} UUIDs; answers of {options.candidates:,} candidates, top {options.top_k}; {options.users} "
        f"users, {options.ranked} candidates and {options.events} events each; {options.rounds} rounds in turns"
    )
    return [
        headline(result.machine, result.commit),
        Table(told, ("what", "way", "ms: median (least-most)", "bytes of the answer"), rows),
        bar_table(result.bars),
    ]

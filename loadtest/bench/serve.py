"""What a machine serves: clients in a closed loop, each with a user whose state is cached, on one or several servers.

Several servers take turns, so that a noisy neighbour slows all of them alike: two commits, or two backends.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

import grpc
import numpy as np

from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.errors import ConfigError
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

NOTES = (
    "clients run on the same machine and share its cores with the server",
    "per_second: answered Rank calls of a round over its seconds; median, least and most over the rounds",
    "p50_ms, p99_ms: calls as the client sees them, over all rounds",
    "misses: calls that did not score on a cached state alone; they are in the figures, so this should be 0",
)

_DAY_MS = 86_400_000
_CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """targets: name -> HOST:PORT. Candidates and histories are items 1 to `num_items`, drawn by `seed`."""

    targets: dict[str, str]
    num_clients: int = 8
    num_candidates: int = 1_000
    num_events: int = 1_024
    num_items: int = 1_682
    seconds: float = 5.0
    rounds: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ServeRow:
    """One server; see NOTES."""

    name: str
    backend: str
    num_calls: int
    misses: int
    per_second: float
    per_second_least: float
    per_second_most: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class ServeResult:
    """Everything that `mfalcon bench serve` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    model: str
    num_clients: int
    num_candidates: int
    num_events: int
    seconds: float
    rows: tuple[ServeRow, ...]


@dataclass(slots=True)
class _Measured:
    """A server under measurement."""

    stub: RankingStub
    requests: list[pb.RankRequest]
    model: pb.GetModelResponse
    seconds: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    misses: int = 0


def run(options: ServeOptions, progress: Callable[[str], None]) -> ServeResult:
    """Measure running servers with users of their own, who are deleted afterwards.

    Raises ConfigError when one cannot be reached or refuses the request.
    """
    return asyncio.run(_run(options, progress))


async def _run(options: ServeOptions, progress: Callable[[str], None]) -> ServeResult:
    machine = this_machine()
    async with _opened(options, progress) as servers:
        for number in range(-1, options.rounds):  # the first one warms up
            for name, server in servers.items():
                progress(f"{name}: round {number + 1} of {options.rounds}")
                await _round(server, options.seconds if number >= 0 else 1.0, counts=number >= 0)
        rows = tuple(_row(name, server) for name, server in servers.items())
        model = next(iter(servers.values())).model.name
    return ServeResult(
        benchmark="serve",
        machine=machine,
        commit=commit(),
        notes=NOTES,
        model=model,
        num_clients=options.num_clients,
        num_candidates=options.num_candidates,
        num_events=options.num_events,
        seconds=options.seconds * options.rounds,
        rows=rows,
    )


@asynccontextmanager
async def _opened(options: ServeOptions, progress: Callable[[str], None]) -> AsyncIterator[dict[str, _Measured]]:
    """Servers with a warm user for each client."""
    channels = {name: grpc.aio.insecure_channel(target) for name, target in options.targets.items()}
    servers: dict[str, _Measured] = {}
    try:
        for name, channel in channels.items():
            progress(f"{name}: {options.num_clients} users of {options.num_events} events")
            servers[name] = await _prepare(RankingStub(channel), name, options)
        yield servers
    finally:
        for server in servers.values():
            for request in server.requests:
                await server.stub.DeleteUser(pb.DeleteUserRequest(user_id=request.user_id), timeout=_CALL_TIMEOUT_S)
        for channel in channels.values():
            await channel.close()


async def _prepare(stub: RankingStub, name: str, options: ServeOptions) -> _Measured:
    rng = np.random.default_rng(options.seed)
    now, life, requests = time.time_ns() // 1_000_000, secrets.token_hex(4), []
    try:
        model = await stub.GetModel(pb.GetModelRequest(), timeout=_CALL_TIMEOUT_S, wait_for_ready=True)
        for client in range(options.num_clients):
            user_id = f"serve-{life}-{client}"
            items = rng.integers(1, options.num_items + 1, options.num_events).tolist()
            events = [
                pb.Event(item_id=item, actions=1, value=3.0, time_ms=now - _DAY_MS + index)
                for index, item in enumerate(items)
            ]
            candidates = rng.integers(1, options.num_items + 1, options.num_candidates).tolist()
            requests.append(pb.RankRequest(user_id=user_id, candidates=candidates))
            await stub.AppendEvents(pb.AppendEventsRequest(user_id=user_id, events=events), timeout=_CALL_TIMEOUT_S)
            await stub.Rank(requests[-1], timeout=_CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.aio.AioRpcError)
        raise ConfigError(f"target {name}: answers {error.code().name}: {error.details()}") from error
    return _Measured(stub, requests, model)


async def _round(server: _Measured, seconds: float, *, counts: bool) -> None:
    """Every client asks again as soon as it is answered, until the time is up."""
    began = time.perf_counter()
    taken: list[float] = []
    misses = 0

    async def client(request: pb.RankRequest) -> None:
        nonlocal misses
        while (asked := time.perf_counter()) - began < seconds:
            response = await server.stub.Rank(request, timeout=_CALL_TIMEOUT_S)
            taken.append(time.perf_counter() - asked)
            misses += response.cache.source == pb.CacheInfo.NONE or response.cache.encoded_tokens > 0

    await asyncio.gather(*map(client, server.requests))
    if counts:
        server.per_second.append(len(taken) / (time.perf_counter() - began))
        server.seconds += taken
        server.misses += misses


def _row(name: str, server: _Measured) -> ServeRow:
    p50, p99 = np.percentile(server.seconds, (50, 99)) * 1e3
    return ServeRow(
        name=name,
        backend=server.model.backend,
        num_calls=len(server.seconds),
        misses=server.misses,
        per_second=median(server.per_second),
        per_second_least=min(server.per_second),
        per_second_most=max(server.per_second),
        p50_ms=float(p50),
        p99_ms=float(p99),
    )

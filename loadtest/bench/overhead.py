"""What the service costs around the engine: one client, one user whose state is cached, the same request each time."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc
import numpy as np

from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.errors import ConfigError
from proto import ranking_pb2, ranking_pb2_grpc

NOTES = (
    "call_us: the gRPC call as the client sees it, from message to message",
    "engine_us: Timings.total_us of the same call, from its arrival in the engine to its result",
    "overhead_us: their difference, call by call: both ends of gRPC, the wire, checks and conversion",
    "misses: calls that did not score on a cached state alone; they are in the figures, so this should be 0",
)

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class OverheadOptions:
    """What to ask, and how often. Candidates and history are items 1 to `num_items`, drawn by `seed`."""

    target: str = "127.0.0.1:50051"
    num_candidates: int = 1_000
    num_calls: int = 500
    num_warmup: int = 50
    num_events: int = 200
    num_items: int = 1_682
    timeout_s: float = 10.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of one duration over all calls, in microseconds."""

    p50: float
    p99: float
    mean: float


@dataclass(frozen=True, slots=True)
class OverheadResult:
    """Everything that `mfalcon bench overhead` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    target: str
    model: str
    model_version: str
    backend: str
    num_candidates: int
    num_events: int
    num_calls: int
    misses: int
    call_us: Percentiles
    engine_us: Percentiles
    overhead_us: Percentiles


def run(options: OverheadOptions, progress: Callable[[str], None]) -> OverheadResult:
    """Measure a running server with a user of its own, who is deleted afterwards.

    Raises ConfigError when the server cannot be reached or refuses the request.
    """
    try:
        with grpc.insecure_channel(options.target) as channel:
            return _measure(options, ranking_pb2_grpc.RankingStub(channel), progress)
    except grpc.RpcError as error:
        call = cast(grpc.Call, error)  # what a stub raises is both
        raise ConfigError(f"target: {options.target} answers {call.code().name}: {call.details()}") from error


def _measure(
    options: OverheadOptions, stub: ranking_pb2_grpc.RankingStub, progress: Callable[[str], None]
) -> OverheadResult:
    model = stub.GetModel(ranking_pb2.GetModelRequest(), timeout=options.timeout_s, wait_for_ready=True)
    if options.num_candidates > model.max_candidates:
        raise ConfigError(f"candidates: got {options.num_candidates}, the server takes {model.max_candidates}")
    rng = np.random.default_rng(options.seed)
    user_id = f"overhead-{secrets.token_hex(8)}"
    now = time.time_ns() // 1_000_000
    request = ranking_pb2.RankRequest(
        user_id=user_id, candidates=rng.integers(1, options.num_items + 1, options.num_candidates).tolist()
    )
    items = rng.integers(1, options.num_items + 1, options.num_events).tolist()
    events = [
        ranking_pb2.Event(item_id=item, actions=1, value=3.0, time_ms=now - _DAY_MS + index)
        for index, item in enumerate(items)
    ]
    progress(f"{user_id}: {len(events)} events, {options.num_candidates} candidates, {options.num_calls} calls")
    try:
        if events:
            stub.AppendEvents(
                ranking_pb2.AppendEventsRequest(user_id=user_id, events=events), timeout=options.timeout_s
            )
        for _ in range(options.num_warmup):
            stub.Rank(request, timeout=options.timeout_s)
        calls, engine, misses = [], [], 0
        for _ in range(options.num_calls):
            began = time.perf_counter_ns()
            response = stub.Rank(request, timeout=options.timeout_s)
            calls.append((time.perf_counter_ns() - began) / 1e3)
            engine.append(float(response.timings.total_us))
            hit = response.cache.source != ranking_pb2.CacheInfo.NONE and response.cache.encoded_tokens == 0
            misses += not hit
    finally:
        stub.DeleteUser(ranking_pb2.DeleteUserRequest(user_id=user_id), timeout=options.timeout_s)
    return OverheadResult(
        benchmark="overhead",
        machine=this_machine(),
        commit=commit(),
        notes=NOTES,
        target=options.target,
        model=model.name,
        model_version=model.version,
        backend=model.backend,
        num_candidates=options.num_candidates,
        num_events=options.num_events,
        num_calls=options.num_calls,
        misses=misses,
        call_us=_percentiles(calls),
        engine_us=_percentiles(engine),
        overhead_us=_percentiles([call - inside for call, inside in zip(calls, engine, strict=True)]),
    )


def _percentiles(samples: list[float]) -> Percentiles:
    p50, p99 = np.percentile(samples, (50, 99))
    return Percentiles(float(p50), float(p99), float(np.mean(samples)))

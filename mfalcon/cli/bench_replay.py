"""`mfalcon bench replay`: a trace of returning users on engines in this process, which may share a Redis."""

import asyncio
import dataclasses
import secrets
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import SHAPES, shape_named
from loadtest.faults.redis_server import RedisServer
from loadtest.load.replay_trace import ReplayReport, Route, replay
from loadtest.load.trace import Step, TraceOptions, trace
from loadtest.report.machine import commit, this_machine
from loadtest.report.table import Part, Table, as_text
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.redis.client import RedisSettings

RouteName = Literal["random", "sticky"]

_MICROBATCH = 64
_READY_S = 300.0
_DEFAULTS = TraceOptions()


def bench_replay(
    requests: Annotated[int, typer.Option(min=1, help="Rank requests of the trace.")] = _DEFAULTS.num_requests,
    users: Annotated[int, typer.Option(min=1, help="Users of the trace.")] = _DEFAULTS.num_users,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = _DEFAULTS.num_candidates,
    history: Annotated[
        int, typer.Option(min=_DEFAULTS.min_history, help="Longest history that a user comes with.")
    ] = _DEFAULTS.max_history,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the trace and of random weights.")] = 0,
    shape: Annotated[str, typer.Option(help=f"Random weights of a shape ({', '.join(SHAPES)}).")] = "S",
    path: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="This checkpoint instead of a random one.")
    ] = None,
    own_redis: Annotated[
        bool, typer.Option("--redis", help="Keep the event log and a tier of KV states in a Redis of its own.")
    ] = False,
    redis_url: Annotated[str | None, typer.Option(help="Or in this one; the users are deleted afterwards.")] = None,
    replicas: Annotated[int, typer.Option(min=1, max=64, help="Engines that share the Redis.")] = 1,
    route: Annotated[
        RouteName, typer.Option(help="Each step goes to a random replica, or each user has one of their own.")
    ] = "random",
    kv_budget_mb: Annotated[int, typer.Option(min=0, help="Memory of each replica for KV states, in MiB.")] = 1_024,
    concurrency: Annotated[int, typer.Option(min=1, help="Users served at once; 1 gives the same counts again.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Torch threads; 0 for all cores of this process.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Play a seeded trace of returning users at full speed: hit rates, tokens reused and encoded, times of Rank."""
    if own_redis and redis_url is not None:
        raise ConfigError("--redis: starts a Redis of its own, so it does not go with --redis-url")
    if replicas > 1 and not (own_redis or redis_url):
        raise ConfigError(f"--replicas: got {replicas}, but replicas share nothing without --redis or --redis-url")
    options = TraceOptions(
        num_users=users, num_requests=requests, num_candidates=candidates, max_history=history, seed=seed
    )
    if path is None:
        loaded = random_checkpoint(shape_named(shape), options.num_items, seed)
        steps = trace(options)
    else:
        loaded = checkpoint.load(path)
        options = dataclasses.replace(options, num_actions=len(loaded.model.config.actions))
        steps = trace(options, loaded.items.item_id)
    config = EngineConfig(
        threads=threads or owned_cores(),
        ranker=RankerOptions(microbatch=_MICROBATCH, kv_budget_bytes=kv_budget_mb << 20),
    )
    torch.set_num_threads(config.threads)
    machine = this_machine()
    with ExitStack() as stack:
        url = stack.enter_context(RedisServer()).url if own_redis else redis_url
        redis = None if url is None else RedisOptions(RedisSettings(url))
        config = dataclasses.replace(config, histories=HistoryOptions(redis=redis))
        report = asyncio.run(run(loaded, config, steps, concurrency, replicas, route, seed))
    if json_output:
        served = {"served": loaded.model.config.name, "replicas": replicas, "route": route, "concurrency": concurrency}
        served |= {"kv_budget_mb": kv_budget_mb, "redis": url is not None}
        where = {"benchmark": "replay", "machine": dataclasses.asdict(machine), "commit": commit()}
        # A trace without an end in time has an infinite one, which JSON cannot say.
        drawn = {name: value for name, value in dataclasses.asdict(options).items() if name != "seconds"}
        print_json(where | served | {"trace": drawn} | dataclasses.asdict(report) | {"hit_rates": report.hit_rates})
    else:
        typer.echo(as_text(_page(report)))


async def run(
    loaded: Checkpoint,
    config: EngineConfig,
    steps: Iterable[Step],
    concurrency: int,
    replicas: int = 1,
    route: RouteName = "random",
    seed: int = 0,
) -> ReplayReport:
    """Build the engines, play the steps with users of their own, forget them and close the engines.

    seed: of the random replicas.
    """
    prefix = f"replay-{secrets.token_hex(4)}"
    seen: set[int] = set()
    async with AsyncExitStack() as stack:
        engines = []
        for _ in range(replicas):
            engine = compose(loaded, config)
            stack.push_async_callback(engine.close)
            engines.append(engine)
            # One after the other: each measures at its start what encoding costs here.
            await asyncio.to_thread(engine.wait_ready, _READY_S)
            await engine.start()
        report = await replay(_route(engines, route, seed), _noted(steps, seen), concurrency, prefix)
        if config.histories.redis is not None:  # it may outlive us
            for user in seen:
                await engines[0].delete_user(f"{prefix}-{user}")
        return report


def _route(engines: list[Engine], route: RouteName, seed: int) -> Route:
    if route == "sticky":
        return lambda user: engines[user % len(engines)]
    rng = np.random.default_rng(seed)
    return lambda user: engines[int(rng.integers(len(engines)))]


def _noted(steps: Iterable[Step], seen: set[int]) -> Iterator[Step]:
    for step in steps:
        seen.add(step.user)
        yield step


def _page(report: ReplayReport) -> Iterator[Part]:
    yield (
        f"{report.requests:,} requests, {report.appends:,} appends, {report.deletes} deletes, {report.edits} edits in "
        f"{report.seconds:.1f} s; errors: {report.errors or 'none'}"
    )
    rows = [(source, f"{count:,}", f"{report.hit_rates[source]:.1%}") for source, count in report.sources.items()]
    yield Table("States", ("found in", "requests", "share"), rows)
    tokens = max(1, report.reused_tokens + report.encoded_tokens)
    yield (
        f"tokens: {report.reused_tokens:,} reused ({report.reused_tokens / tokens:.1%}), "
        f"{report.encoded_tokens:,} encoded\n"
        f"Rank: p50 {report.p50_ms:.2f} ms, p99 {report.p99_ms:.2f} ms, longest {report.max_ms:.2f} ms"
    )

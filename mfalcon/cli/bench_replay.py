"""`mfalcon bench replay`: a trace of returning users on an engine in this process."""

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from loadtest.random_checkpoint import random_checkpoint
from loadtest.replay_trace import ReplayReport, replay
from loadtest.shapes import SHAPES, shape_named
from loadtest.trace import Step, TraceOptions, trace
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.engine.engine import Engine, EngineConfig
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint

BuildEngine = Callable[[Checkpoint, EngineConfig, str | None], Engine]
"""Checkpoint, settings and the Redis URL if there is one -> an engine on the running event loop."""

_MICROBATCH = 64
_READY_S = 300.0
_DEFAULTS = TraceOptions()


def build_engine(loaded: Checkpoint, config: EngineConfig, redis_url: str | None) -> Engine:
    """An engine with the tiers of this process. Raises ConfigError if one on Redis is asked for."""
    if redis_url is not None:
        raise ConfigError(f"--redis-url: got {redis_url!r}, but this replay has no Redis tier")
    return Engine(loaded, config)


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
    redis_url: Annotated[str | None, typer.Option(help="Keep the event log and a tier of KV states in Redis.")] = None,
    kv_budget_mb: Annotated[int, typer.Option(min=0, help="Memory for KV states in this process, in MiB.")] = 1_024,
    concurrency: Annotated[int, typer.Option(min=1, help="Users served at once; 1 gives the same counts again.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Torch threads; 0 for all cores of this process.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Play a seeded trace of returning users at full speed: hit rates, tokens reused and encoded, times of Rank."""
    options = TraceOptions(
        num_users=users, num_requests=requests, num_candidates=candidates, max_history=history, seed=seed
    )
    if path is None:
        loaded = random_checkpoint(shape_named(shape), options.num_items, seed)
        steps = trace(options)
    else:
        loaded = checkpoint.load(path)
        actions = len(loaded.model.config.actions)
        steps = trace(dataclasses.replace(options, num_actions=actions), loaded.items.item_id)
    config = EngineConfig(threads=threads or owned_cores(), microbatch=_MICROBATCH, kv_budget_bytes=kv_budget_mb << 20)
    torch.set_num_threads(config.threads)
    report = asyncio.run(run(loaded, config, redis_url, steps, concurrency, users))
    if json_output:
        print_json(dataclasses.asdict(report) | {"hit_rates": report.hit_rates})
    else:
        _print(report)


async def run(
    loaded: Checkpoint,
    config: EngineConfig,
    redis_url: str | None,
    steps: Iterable[Step],
    concurrency: int,
    users: int,
    build: BuildEngine = build_engine,
) -> ReplayReport:
    """Build an engine, play the steps with users of their own, forget them and close the engine."""
    engine = build(loaded, config, redis_url)
    prefix = f"replay-{secrets.token_hex(4)}"
    try:
        await asyncio.to_thread(engine.wait_ready, _READY_S)
        report = await replay(engine, steps, concurrency, prefix)
        if redis_url is not None:  # it outlives us
            for user in range(users):
                await engine.delete_user(f"{prefix}-{user}")
        return report
    finally:
        await engine.close()


def _print(report: ReplayReport) -> None:
    console = Console(highlight=False)
    console.print(
        f"{report.requests:,} requests, {report.appends:,} appends, {report.deletes} deletes, {report.edits} edits in "
        f"{report.seconds:.1f} s; errors: {report.errors or 'none'}"
    )
    table = Table("state found in", pad_edge=False)
    for name in ("requests", "share"):
        table.add_column(name, justify="right")
    for source, count in report.sources.items():
        table.add_row(source, f"{count:,}", f"{report.hit_rates[source]:.1%}")
    console.print(table)
    tokens = max(1, report.reused_tokens + report.encoded_tokens)
    console.print(
        f"tokens: {report.reused_tokens:,} reused ({report.reused_tokens / tokens:.1%}), "
        f"{report.encoded_tokens:,} encoded"
    )
    console.print(f"Rank: p50 {report.p50_ms:.2f} ms, p99 {report.p99_ms:.2f} ms, longest {report.max_ms:.2f} ms")

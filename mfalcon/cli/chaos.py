"""`mfalcon chaos`: replicas on one Redis with faults, or running servers; every answer held against a cold oracle."""

import dataclasses
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from loadtest.faults.chaos import Chaos, Inject
from loadtest.faults.chaos_client import ChaosOptions
from loadtest.faults.chaos_report import ChaosReport
from loadtest.faults.fleet import Fleet
from loadtest.faults.inject import MEAN_GAP_S, inject
from loadtest.faults.redis_server import RedisServer
from loadtest.report.machine import commit, this_machine
from mfalcon.cli.calling import calling
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint

_DEFAULTS = ChaosOptions()
_FLAGS = ("--threads", "1", "--microbatch", "64")
_REDIS_FLAGS = ("--event-log", "redis", "--log-unreachable", "refuse")


def chaos(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The checkpoint to serve.")],
    minutes: Annotated[float, typer.Option(help="How long to send.", min=0.01, max=600)] = 5.0,
    servers: Annotated[int, typer.Option(help="Replicas to start.", min=1, max=64)] = 4,
    users: Annotated[int, typer.Option(help="Users of the trace.", min=1)] = _DEFAULTS.num_users,
    clients: Annotated[int, typer.Option(help="Client threads that own the users.", min=1)] = _DEFAULTS.num_clients,
    rate: Annotated[float, typer.Option(help="Steps of the trace a second.", min=0.1)] = _DEFAULTS.rate,
    deadline_ms: Annotated[int, typer.Option(help="Deadline of every call.", min=1)] = 1_000,
    fault_gap: Annotated[float, typer.Option(help="Mean seconds between faults.", min=0.1)] = MEAN_GAP_S,
    kv_budget_mb: Annotated[int, typer.Option(help="Memory for KV states of each replica, MiB.", min=0)] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the traffic and of the faults.", min=0)] = 0,
    no_faults: Annotated[bool, typer.Option("--no-faults", help="Only the traffic.")] = False,
    no_redis: Annotated[
        bool, typer.Option("--no-redis", help="One server with its own event log; goes with --no-faults.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Start nothing and break nothing: a running server of CHECKPOINT; repeatable for replicas.",
        ),
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="Directory for what the replicas log.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Kill and freeze Redis and replicas under load; exit code 1 on a wrong, lost, late or missing answer."""
    if no_redis and (servers > 1 or not no_faults):
        raise ConfigError("--no-redis: replicas share nothing without Redis; give --servers 1 and --no-faults too")
    if target and (no_redis or logs is not None):
        raise ConfigError("--target: nothing is started, so --no-redis and --logs do not go with it")
    torch.set_num_threads(1)
    options = ChaosOptions(
        seconds=minutes * 60,
        num_users=users,
        num_clients=clients,
        rate=rate,
        deadline_s=deadline_ms / 1000,
        prefix=f"chaos-{secrets.token_hex(4)}" if target else "chaos",
        seed=seed,
    )
    machine = this_machine()
    if target:
        no_faults, servers = True, len(target)
        report = run_against(path, options, target)
    else:
        report = run(
            path,
            options,
            num_servers=servers,
            kv_budget_mb=kv_budget_mb,
            fault_gap_s=None if no_faults else fault_gap,
            redis=not no_redis,
            logs=logs,
        )
    if json_output:
        where = {"benchmark": "chaos", "machine": dataclasses.asdict(machine), "commit": commit()}
        faults = {"fault_gap_s": None if no_faults else fault_gap}
        sent = {"served": path.name, "servers": servers} | faults
        sent |= {"targets": target} if target else {"kv_budget_mb": kv_budget_mb, "redis": not no_redis}
        sent |= dataclasses.asdict(options) | {"load_after": round(os.getloadavg()[0], 2)}
        print_json(where | {"settings": sent} | dataclasses.asdict(report) | {"holds": report.holds})
    else:
        _print(report)
    if not report.holds:
        raise typer.Exit(1)


def run(
    path: Path,
    options: ChaosOptions,
    *,
    num_servers: int,
    kv_budget_mb: int,
    fault_gap_s: float | None,
    redis: bool = True,
    logs: Path | None = None,
) -> ChaosReport:
    """Start Redis and the replicas, send, stop them and compare. fault_gap_s: mean seconds between faults, or none."""
    loaded = checkpoint.load(path)
    flags: tuple[str, ...] = (*_FLAGS, "--kv-budget-mb", str(kv_budget_mb))
    with ExitStack() as stack:
        store = stack.enter_context(RedisServer(append_only=True)) if redis else None
        if store is not None:
            flags += ("--redis-url", store.url, *_REDIS_FLAGS)
        fleet = stack.enter_context(Fleet(path, num_servers, flags, logs))
        faults: Inject | None = None
        if store is not None and fault_gap_s is not None:
            faults = partial(inject, store, fleet, options.seed, mean_gap_s=fault_gap_s)
        sent = Chaos(loaded, fleet.targets, options)
        sent.run(faults)
        exited = fleet.exited()
    return sent.report(exited, owned_cores())


def run_against(path: Path, options: ChaosOptions, targets: Sequence[str]) -> ChaosReport:
    """Send to servers that run already, and compare. Raises ConfigError if one serves another checkpoint."""
    loaded = checkpoint.load(path)
    for target in targets:
        with calling(target) as client:
            served = client.get_model().version
        if not loaded.fingerprint.startswith(served):
            raise ConfigError(f"{target} serves version {served}, {path} is {loaded.fingerprint[: len(served)]}")
    sent = Chaos(loaded, targets, options)
    sent.run()
    return sent.report((), owned_cores())


def _print(report: ChaosReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{report.requests:,} calls in {report.seconds:.0f} s: {_counts(report.statuses)}")
    console.print(f"faults: {_counts(report.faults)}; appends: {_counts(report.appends)}")
    console.print(f"of them: {_counts(report.mixes)}")
    console.print(f"states found: {_counts(report.sources)}")
    console.print(
        f"{report.checked:,} answers checked, {report.final:,} of them at the very end: {report.wrong} wrong, "
        f"worst score error {report.worst_error:.1e}"
    )
    console.print(
        f"stale {report.stale}, lost or doubled {report.lost}, unresolved {report.unresolved}, "
        f"unanswered {report.unanswered}, unexpected {report.unexpected}, replicas that ended {report.exited}"
    )
    console.print(
        f"late {report.late}, at most {report.latest_ms:.0f} ms after the deadline "
        f"(this machine held up an idle thread for {report.stall_ms:.0f} ms)"
    )
    console.print(f"Rank: p50 {report.p50_ms:.1f} ms, p99 {report.p99_ms:.1f} ms, longest {report.max_ms:.0f} ms")
    for complaint in report.complaints:
        console.print(complaint, style="red", markup=False)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"

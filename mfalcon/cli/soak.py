"""`mfalcon soak`: many clients against a running server, every answer held against a cold oracle."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from loadtest.faults.soak import Soak, SoakOptions
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.models import checkpoint


def soak(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The checkpoint that the server serves.")],
    seconds: Annotated[float, typer.Option(help="How long to send.", min=0.1, max=3600)] = 60.0,
    clients: Annotated[int, typer.Option(help="Concurrent clients.", min=1, max=1024)] = 64,
    users: Annotated[int, typer.Option(help="Users that they share.", min=1)] = 200,
    candidates: Annotated[int, typer.Option(help="Candidates of a request.", min=1)] = 50,
    seed: Annotated[int, typer.Option(help="Seed of the traffic.")] = 0,
    target: TargetOption = DEFAULT_TARGET,
    json_output: JsonOption = False,
) -> None:
    """Mix Rank, AppendEvents and DeleteUser; exit code 1 unless each is answered once and every score is right."""
    torch.set_num_threads(1)
    loaded = checkpoint.load(path)
    report = asyncio.run(Soak(loaded, SoakOptions(target, seconds, clients, users, candidates, seed)).run())
    if json_output:
        print_json(dataclasses.asdict(report) | {"holds": report.holds})
    else:
        Console(highlight=False).print(
            f"{report.sent:,} requests ({report.ranked:,} ranks, {report.appended:,} appends, "
            f"{report.refused:,} appends that lost a race, {report.deleted:,} deletes), "
            f"{report.requests_per_second:.0f} a second; unanswered {report.unanswered}, wrong {report.wrong}, "
            f"worst score error {report.worst_error:.1e}; rank p50 {report.p50_ms:.1f} ms, p99 {report.p99_ms:.1f} ms"
        )
    if not report.holds:
        raise typer.Exit(1)

"""`mfalcon bench faults`: real Redis servers and one fault after another, as the table of docs/operations.md."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from loadtest.faults import frozen
from loadtest.faults import table as fault_table
from loadtest.faults.frozen import FrozenOptions, FrozenResult
from loadtest.faults.table import FAULTS, FaultTable
from mfalcon.cli.bench_output import progress
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.errors import ConfigError

_DEFAULTS = FrozenOptions()


def bench_faults(
    ranks: Annotated[int, typer.Option(min=3, help="Ranks of each kind under each fault.")] = 20,
    only: Annotated[str | None, typer.Option(help="Only faults that have this in their name.")] = None,
    frozen_load: Annotated[
        bool, typer.Option("--frozen", help="Instead: freeze Redis under load and measure what that adds to p99.")
    ] = False,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once, with --frozen.")] = _DEFAULTS.clients,
    period_ms: Annotated[
        float, typer.Option(min=1, help="Time between two ranks of one client, with --frozen.")
    ] = _DEFAULTS.period_s * 1e3,
    rounds: Annotated[int, typer.Option(min=1, help="Freezes, with --frozen.")] = _DEFAULTS.rounds,
    json_output: JsonOption = False,
) -> None:
    """Break Redis in every way and print what Rank is answered; exit code 1 on an answer that must not be."""
    torch.set_num_threads(1)
    result: FaultTable | FrozenResult
    lines: Iterator[str]
    if frozen_load:
        options = dataclasses.replace(_DEFAULTS, clients=clients, period_s=period_ms / 1e3, rounds=rounds)
        result = frozen.run(options, progress)
        lines, complaints = frozen.markdown(result), []
    else:
        if only is not None and not any(only in fault.name for fault in FAULTS):
            raise ConfigError(f"--only: got {only!r}, must be in one of: {', '.join(fault.name for fault in FAULTS)}")
        result = fault_table.run(ranks, progress, only)
        lines = fault_table.markdown(result)
        complaints = [f"{row.fault} ({row.setup}): {text}" for row in result.rows for text in row.complaints]
    if json_output:
        print_json(dataclasses.asdict(result))
    else:
        for line in lines:
            typer.echo(line)
    for complaint in complaints:
        typer.echo(complaint, err=True)
    if complaints:
        raise typer.Exit(1)

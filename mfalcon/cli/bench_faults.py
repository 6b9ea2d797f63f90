"""`mfalcon bench faults`: real Redis servers and one fault after another, as the page docs/results/faults.md."""

import dataclasses
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.faults import fault_page
from loadtest.faults.under_load import LoadOptions
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError

_DEFAULTS = LoadOptions()


def bench_faults(
    ranks: Annotated[int, typer.Option(min=3, help="Ranks of each kind under each fault.")] = 20,
    only: Annotated[
        str | None, typer.Option(help=f"Only what has this in its name; {fault_page.UNDER_LOAD!r} is one of them.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once, under load.")] = _DEFAULTS.clients,
    period_ms: Annotated[
        float, typer.Option(min=1, help="Time between two ranks of one client, under load.")
    ] = _DEFAULTS.period_s * 1e3,
    rounds: Annotated[int, typer.Option(min=1, help="Freezes under load.")] = _DEFAULTS.rounds,
    write: Annotated[Path | None, typer.Option(help="Also write the page here, as Markdown.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Break Redis in every way and print what Rank is answered; exit code 1 on an answer that must not be."""
    if only is not None and not any(only in name for name in fault_page.names()):
        raise ConfigError(f"--only: got {only!r}, must be in one of: {', '.join(fault_page.names())}")
    torch.set_num_threads(1)
    load = dataclasses.replace(_DEFAULTS, clients=clients, period_s=period_ms / 1e3, rounds=rounds)
    result = fault_page.run(ranks, load, progress, only)
    if write is not None:
        write.write_text(as_markdown(fault_page.page(result)) + "\n", encoding="utf-8")
    show(result, fault_page.page, json_output)
    for complaint in result.complaints:
        typer.echo(complaint, err=True)
    if result.complaints:
        raise typer.Exit(1)

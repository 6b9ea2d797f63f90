"""`mfalcon bench faults`: one fault after another, of Redis or of the server itself, as the pages
docs/results/faults.md and docs/results/server-faults.md.
"""

import dataclasses
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

from loadtest.faults import fault_page, server_page
from loadtest.faults.fault_page import FaultResult
from loadtest.faults.server_page import ServerFaultResult
from loadtest.faults.server_scene import Effort
from loadtest.faults.under_load import LoadOptions
from loadtest.report.table import Part, as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError

_DEFAULTS = LoadOptions()
Result = TypeVar("Result", FaultResult, ServerFaultResult)


class Of(StrEnum):
    """Whose faults."""

    REDIS = "redis"
    SERVER = "server"


def bench_faults(
    of: Annotated[Of, typer.Option(help="Whose faults: those of Redis, or of the server itself.")] = Of.REDIS,
    ranks: Annotated[int, typer.Option(min=3, help="Ranks of each kind under each fault.")] = 20,
    only: Annotated[
        str | None, typer.Option(help=f"Only what has this in its name; {fault_page.UNDER_LOAD!r} is one of them.")
    ] = None,
    clients: Annotated[int, typer.Option(min=1, help="Clients at once, under load.")] = _DEFAULTS.clients,
    period_ms: Annotated[
        float, typer.Option(min=1, help="Time between two ranks of one client, under load.")
    ] = _DEFAULTS.period_s * 1e3,
    rounds: Annotated[int, typer.Option(min=1, help="Freezes under load.")] = _DEFAULTS.rounds,
    phase_ms: Annotated[
        float, typer.Option(min=1, help="Time before a freeze, and behind its first second, under load.")
    ] = _DEFAULTS.phase_s * 1e3,
    checkpoints: Annotated[
        int | None, typer.Option(min=1, help="Bad checkpoints to start the server on; all if not given.")
    ] = None,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Break Redis or the server in every way and print what Rank is answered; exit code 1 on what must not be.

    Clients, their period, rounds and phases are of Redis alone, checkpoints of the server.
    """
    names = server_page.names() if of is Of.SERVER else fault_page.names()
    if only is not None and not any(only in name for name in names):
        raise ConfigError(f"--only: got {only!r}, must be in one of: {', '.join(names)}")
    torch.set_num_threads(1)
    if of is Of.SERVER:
        _hand_over(
            server_page.run(Effort(ranks, checkpoints=checkpoints), progress, only),
            server_page.page,
            write,
            json_output,
        )
        return
    load = dataclasses.replace(
        _DEFAULTS, clients=clients, period_s=period_ms / 1e3, rounds=rounds, phase_s=phase_ms / 1e3
    )
    _hand_over(fault_page.run(ranks, load, progress, only), fault_page.page, write, json_output)


def _hand_over(result: Result, page: Callable[[Result], Iterable[Part]], write: Path | None, json_output: bool) -> None:
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    for complaint in result.complaints:
        typer.echo(complaint, err=True)
    if result.complaints:
        raise typer.Exit(1)

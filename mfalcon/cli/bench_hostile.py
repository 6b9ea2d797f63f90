"""`mfalcon bench hostile`: what good clients see of hostile ones, as the page docs/results/hostile.md."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.faults.attacks import ATTACKS, TLS_ATTACKS
from loadtest.faults.hostile import HostileOptions, page, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError

_DEFAULTS = HostileOptions()


def bench_hostile(
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="Of the full number of each attack.")] = 1.0,
    frontends: Annotated[
        list[int] | None, typer.Option(min=0, help="Front-ends of the server that is attacked; repeatable: 0 and 2.")
    ] = None,
    quiet_seconds: Annotated[float, typer.Option(min=0.5, help="Before each attack.")] = _DEFAULTS.quiet_s,
    period_ms: Annotated[float, typer.Option(min=1, help="Between two ranks of a good client.")] = _DEFAULTS.period_s
    * 1e3,
    only: Annotated[
        str, typer.Option(help=f"Only attacks with this in their name: {', '.join(ATTACKS | TLS_ATTACKS)}.")
    ] = "",
    tls: Annotated[bool, typer.Option("--tls", help="Encrypt all of it, and attack handshakes too.")] = False,
    neighbour: Annotated[
        bool, typer.Option(help="Attack another server first: what sharing the machine costs good clients.")
    ] = True,
    rounds: Annotated[
        int, typer.Option(min=1, help="Make all attacks so often on the same server; memory is judged after the first.")
    ] = 1,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Attack a server in every way while good clients rank over both transports; exit code 1 if a bar is missed."""
    servers = tuple(frontends or _DEFAULTS.frontends)
    options = HostileOptions(share, servers, quiet_seconds, period_ms / 1e3, only, tls, neighbour, rounds)
    if not options.attacks:
        raise ConfigError(f"--only: got {only!r}, must be in one of: {', '.join(ATTACKS | TLS_ATTACKS)}")
    result = run(options, progress)
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)

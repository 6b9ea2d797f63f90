"""`mfalcon bench merge`: what an ensemble costs, and what its answers are while members are lost."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.merge import MergeOptions, page, run
from loadtest.faults import members_page
from loadtest.faults.members import Effort
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError

_DEFAULTS = MergeOptions()
_EFFORT = Effort()


def bench_merge(
    paths: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoints of the members.")],
    m: Annotated[list[int] | None, typer.Option("--m", min=1, help="Candidates of a rank; repeatable.")] = None,
    events: Annotated[int, typer.Option(min=1, help="Events of the user.")] = _DEFAULTS.events,
    rounds: Annotated[int, typer.Option(min=1, help="How often each rank is timed.")] = _DEFAULTS.rounds,
    faults: Annotated[
        bool, typer.Option("--faults", help="Instead: three members as processes that are frozen, killed, overloaded.")
    ] = False,
    budget_ms: Annotated[int, typer.Option(min=1, help="Of --faults: the budget of the merge.")] = _EFFORT.budget_ms,
    json_output: JsonOption = False,
) -> None:
    """Time ranks of each member alone and of all merged; or break members, and hold every answer against the rest."""
    if len(paths) < 2:
        raise ConfigError(f"CHECKPOINT: got {len(paths)}, must be at least 2")
    num = tuple(m or _DEFAULTS.candidates)
    if not faults:
        show(run(paths, MergeOptions(num, events, rounds), progress), page, json_output)
        return
    if len(paths) != 3:
        raise ConfigError(f"CHECKPOINT: got {len(paths)}, must be 3 with --faults: one here, two on other replicas")
    effort = Effort(rounds, num[0], events, budget_ms)
    result = members_page.run(paths, effort, progress)
    show(result, members_page.page, json_output)
    if not all(bar.holds for bar in result.bars):
        raise typer.Exit(1)

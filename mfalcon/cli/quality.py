"""`mfalcon quality`: ranking quality over seeds on MovieLens-100K, merged and beside the baselines of the same run, as
the page docs/results/quality.md.
"""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench.ranking_quality import RECIPES, page, recipes, run
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import result_file, show
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError


def quality(
    seeds: Annotated[int, typer.Option(help="Seeds of each recipe.", min=1)] = 3,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A recipe to train, all if not given: {', '.join(RECIPES)}; repeatable."),
    ] = None,
    directory: Annotated[
        Path, typer.Option(help="Where the checkpoints go; those of the same recipe and data are used again.")
    ] = Path("checkpoints/quality"),
    processes: Annotated[int, typer.Option(help="Trainings side by side; 0 for one on each core.", min=0)] = 0,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Train every recipe with several seeds (split A), evaluate, merge, and hold the medians against their bars."""
    if unknown := [name for name in only or () if name not in RECIPES]:
        raise ConfigError(f"--only: got {unknown[0]!r}, must be one of {', '.join(map(repr, RECIPES))}")
    dataset = open_dataset("ml-100k", "", None, "", None)
    result = run(dataset, recipes(dataset, seeds, only or RECIPES), directory, processes or owned_cores())
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if any(bar.holds is False for bar in result.bars):
        raise typer.Exit(1)

"""`mfalcon bench reach` and `bench reach-quality`: layers that see a part of a history, their time and their AUC."""

from pathlib import Path
from typing import Annotated

import typer

from kernels.reach import Reach
from loadtest.bench import reach
from loadtest.bench.reach import QualityOptions, ReachOptions
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption

_DEFAULTS, _QUALITY = ReachOptions(), QualityOptions()
TokensOption = Annotated[int, typer.Option(min=1, help="Tokens before a token of the history that it sees.")]
TargetsOption = Annotated[int, typer.Option(min=1, help="Newest tokens that a candidate sees.")]
FirstOption = Annotated[int, typer.Option(min=0, help="First tokens that both see.")]


def bench_reach(
    n: Annotated[int, typer.Option("--n", min=2, max=16_000, help="Events of the history.")] = _DEFAULTS.num_events,
    m: Annotated[int, typer.Option("--m", min=1, help="Number of candidates.")] = _DEFAULTS.num_candidates,
    threads: Annotated[int, typer.Option(min=1, help="Cores.")] = _DEFAULTS.threads,
    shape: Annotated[str, typer.Option(help="Shape of the model.")] = _DEFAULTS.shape,
    rounds: Annotated[int, typer.Option(min=1, help="Scores and appends of each model.")] = _DEFAULTS.rounds,
    tokens: TokensOption = _DEFAULTS.reach.tokens,
    targets: TargetsOption = _DEFAULTS.reach.targets,
    first: FirstOption = _DEFAULTS.reach.first,
    json_output: JsonOption = False,
) -> None:
    """Prefill, append and score of layers that see a part of a history, in turns with full attention."""
    seen = Reach(tokens=tokens, targets=targets, first=first)
    options = ReachOptions(shape, n, m, threads, rounds=rounds, reach=seen)
    show(reach.measure(options, progress), reach.page, json_output)


def bench_reach_quality(
    max_history: Annotated[int, typer.Option(min=16, max=1_024, help="Events of a window.")] = _QUALITY.max_history,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each.")] = _QUALITY.seeds,
    processes: Annotated[int, typer.Option(min=1, help="Trainings side by side.")] = 1,
    tokens: TokensOption = _QUALITY.reach.tokens,
    targets: TargetsOption = _QUALITY.reach.targets,
    first: FirstOption = _QUALITY.reach.first,
    runs: Annotated[
        Path, typer.Option(help="Where checkpoints are kept; those that are there are not trained again.")
    ] = Path("build/reach-quality"),
    json_output: JsonOption = False,
) -> None:
    """AUC of layers that see a part of a history beside full attention, on MovieLens-100K."""
    options = QualityOptions(max_history, seeds, Reach(tokens=tokens, targets=targets, first=first))
    dataset = open_dataset("ml-100k", "", None, "", None)
    show(reach.quality(dataset, options, runs, processes, progress), reach.quality_page, json_output)

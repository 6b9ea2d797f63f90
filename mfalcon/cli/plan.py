"""`mfalcon plan`: which ranker to train for a data set and a latency budget."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from mfalcon.cli.bench_output import PlotOption
from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    open_dataset,
)
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.training import train_checkpoint
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.models import checkpoint
from mfalcon.planner.entropy import entropy_of
from mfalcon.planner.grid import FITTED, HELD_OUT, PROBES, GridProgress, Reach, RunRecord, Shape, run_grid
from mfalcon.planner.latency import LatencyLaw, measure, memory_of
from mfalcon.planner.plan import Knowledge, Option, Plan, make_plan, regret
from mfalcon.planner.report import (
    curve_table,
    described,
    interval,
    more_table,
    plan_lines,
    plot_plan,
    runs_table,
    trust_lines,
)
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.settings import problem
from mfalcon.train.splits import TRAIN, VALIDATION, split, thinned
from mfalcon.types import Ids

_console = Console(highlight=False)
_notes = Console(stderr=True, highlight=False)
_ROUNDS = 40


def plan(
    budget_ms: Annotated[
        float, typer.Option(min=0.01, help="Most that a rank may take, its user's state cached, without a network.")
    ],
    m: Annotated[int, typer.Option("--m", min=1, max=1_000_000, help="Candidates of a rank.")] = 1_000,
    target_auc: Annotated[
        float | None, typer.Option(min=0, max=1, help="Take the quickest that is predicted to reach this AUC.")
    ] = None,
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the runs; plans/<data> if not given.", show_default=False)
    ] = None,
    steps: Annotated[int, typer.Option(min=5, help="Of each run.", rich_help_panel="Runs")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Of each run.", rich_help_panel="Runs")] = 0,
    most_dim: Annotated[int, typer.Option(help="Widest model that is tried.", rich_help_panel="Runs")] = 64,
    most_history: Annotated[int, typer.Option(help="Longest history that is tried.", rich_help_panel="Runs")] = 200,
    threads: Annotated[
        int, typer.Option(min=0, help="Torch threads of the runs; 0 for all cores.", rich_help_panel="Runs")
    ] = 0,
    cores: Annotated[int, typer.Option(min=0, help="Cores that will serve; 0 for all of this process.")] = 0,
    then_train: Annotated[
        Path | None, typer.Option(help="Train what is chosen on all users, into this checkpoint directory.")
    ] = None,
    plot: PlotOption = None,
    json_output: JsonOption = False,
) -> None:
    """Train a grid of short runs, fit a law of quality and one of latency, and say what to train for a budget.

    The runs take minutes to hours and are kept: the same command goes on where it stopped, and another budget, target
    or number of candidates costs seconds.
    """
    dataset = open_dataset(data, columns, items, item_columns, like_at_least)
    if then_train is not None:
        checkpoint.check_replaceable(then_train)
    try:
        reach = Reach(dim=most_dim, max_history=most_history)
    except ValidationError as error:
        raise ConfigError(f"--most-{problem(error, Reach).replace('max_', '', 1)}") from error
    folder = out or Path("plans") / dataset.name
    lock = DirectoryLock(folder, "--out")
    try:
        torch.set_num_threads(threads or owned_cores())
        shapes = reach.shapes((*FITTED, *HELD_OUT))
        _notes.print(f"{len(shapes)} runs of {steps} steps in {folder}; Ctrl-C keeps what is done", style="dim")
        records = run_grid(dataset, shapes, steps, seed, folder, _show)
    finally:
        lock.release()
    knowledge = Knowledge(records, _entropies(dataset, reach), reach)
    serving = cores or owned_cores()
    latency = _latency(dataset, reach, m, serving)

    def seconds_of(shape: Shape) -> float:
        return latency.seconds(shape.model(dataset))

    def measured(shape: Shape) -> float:
        _notes.print(f"serving {described(shape)} with random weights", style="dim")
        return measure(dataset, {shape.name: shape.model(dataset)}, m, serving, _ROUNDS)[shape.name]

    found = make_plan(
        knowledge,
        reach.space,
        seconds_of,
        budget_ms / 1e3,
        target_auc,
        measured,
        lambda shape: memory_of(dataset, shape.model(dataset)),
    )
    missed = regret(records, knowledge, seconds_of)
    if json_output:
        print_json(
            {
                "entropy": _entropies(dataset, reach)[1.0],
                "runs": [record.model_dump() for record in records],
                "trust": asdict(knowledge.trust) | {"regret": missed},
                "plan": _plain(found),
            }
        )
    else:
        _print(dataset, knowledge, records, found, missed, budget_ms, m, target_auc)
    if plot is not None:
        options = [Option(shape, knowledge.predict(shape), seconds_of(shape)) for shape in reach.space]
        plot_plan(f"{dataset.name}, {m:,} candidates, {serving} cores", found, options, budget_ms, plot)
    if found.chosen is None:
        raise typer.Exit(1)
    if then_train is not None:
        _train(dataset, found.chosen, steps, seed, then_train, threads)


def _show(progress: GridProgress) -> None:
    """A line when a run begins, and one when it is done."""
    share = f"{progress.shape.users_share:.0%} of users"
    at = f"[{progress.index + 1}/{progress.num_runs}] {described(progress.shape)}, {share}"
    left = "" if progress.seconds_left is None else f"; about {_minutes(progress.seconds_left)} left"
    if progress.record is None:
        _notes.print(f"{at} ...{left}", style="dim", markup=False)
    elif progress.was_kept:
        _notes.print(f"{at}: AUC {progress.record.validation:.4f}, kept", style="dim", markup=False)
    else:
        took = f"AUC {progress.record.validation:.4f} in {progress.record.seconds:.0f} s"
        _notes.print(f"{at}: {took}{left}", style="dim", markup=False)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _entropies(dataset: Dataset, reach: Reach) -> dict[float, float]:
    """Of the users of each share that the runs have."""
    parts = split(dataset, "A")
    shares = sorted({shape.users_share for shape in reach.shapes((*FITTED, *HELD_OUT))})
    return {share: entropy_of(dataset, _users(dataset, thinned(parts, dataset, share)))[0] for share in shares}


def _users(dataset: Dataset, parts: NDArray[np.int8]) -> Ids:
    return np.unique(dataset.user[parts == TRAIN])


def _latency(dataset: Dataset, reach: Reach, num_candidates: int, cores: int) -> LatencyLaw:
    probes = {shape.name: shape.model(dataset) for shape in reach.shapes(PROBES)}
    _notes.print(f"serving {len(probes)} models with random weights on {cores} cores", style="dim")
    seconds = measure(dataset, probes, num_candidates, cores, _ROUNDS)
    return LatencyLaw(list(probes.values()), np.array([seconds[name] for name in probes]), num_candidates)


def _print(
    dataset: Dataset,
    knowledge: Knowledge,
    records: list[RunRecord],
    found: Plan,
    missed: float,
    budget_ms: float,
    num_candidates: int,
    target_auc: float | None,
) -> None:
    _console.print(runs_table(records))
    value, symbol = entropy_of(dataset, _users(dataset, split(dataset, "A")))
    _console.print(f"\nentropy of a user's {symbol}: {value:.3f} of its largest", soft_wrap=True)
    for line in trust_lines(knowledge.trust, missed):
        _console.print(line, soft_wrap=True)
    _console.print()
    _console.print(curve_table(found))
    if found.more:
        _console.print(more_table(found))
    _console.print()
    for line in plan_lines(found, budget_ms, num_candidates, target_auc):
        _console.print(line, soft_wrap=True)
    if found.chosen is not None:
        shape = found.chosen.shape
        heads = shape.model(dataset).stack[0].num_heads
        sizes = f"--layers {shape.layers} --dim {shape.dim} --heads {heads} --max-history {shape.max_history}"
        _console.print(f"mfalcon train {sizes} --window-chunk {max(1, shape.max_history // 2)}", soft_wrap=True)


def _train(dataset: Dataset, chosen: Option, steps: int, seed: int, out: Path, threads: int) -> None:
    """Train what was chosen as the runs were trained, and say what came of the prediction."""
    training = chosen.shape.training(steps, seed)
    train_checkpoint(dataset, chosen.shape.model(dataset), training, out, threads, overwrite=True)
    model = checkpoint.load(out, torch.float32, "cpu").model
    auc = evaluate(model, dataset, split(dataset, training.split) == VALIDATION, "strict")[0].auc
    _notes.print(f"validation AUC {auc:.4f}; predicted {interval(chosen.auc)}")


def _plain(found: Plan) -> object:
    return TypeAdapter(Plan).dump_python(found, mode="json")

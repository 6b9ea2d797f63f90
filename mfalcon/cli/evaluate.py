"""`mfalcon evaluate`: offline quality of a checkpoint, or of several as one."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mfalcon.cli.bench_output import PlotOption
from mfalcon.cli.datasets import (
    ColumnsOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    NamedDataOption,
    ScratchOption,
    check_split,
    data_of,
    open_dataset,
)
from mfalcon.cli.evaluate_rerank import evaluate_rerank, plot_rerank, rerank_table
from mfalcon.cli.evaluate_tasks import evaluate_ranker
from mfalcon.cli.members import load_members, member_weights, merge_method
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.report_table import report_table
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.lum import LUM
from mfalcon.rerank.order import METHODS
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import RegressionReport, Report
from mfalcon.train.interests import evaluate_interests, evaluate_popularity
from mfalcon.train.leaks import leak_lines
from mfalcon.train.merging import (
    Correlation,
    check_members,
    correlations,
    evaluate_merges,
    merge_of,
    score_members,
)
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, Split, split, split_name
from mfalcon.train.vocabulary import check_labels, fit_to, missing_features
from mfalcon.types import MergeMethod

_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")


def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoint directory; several with --merge.")
    ],
    data: NamedDataOption = None,
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    scratch: ScratchOption = None,
    given: Annotated[
        Split | None,
        typer.Option(
            "--split", help="A: the last tenth by time; B: of every user.", show_default="A, or what a column says"
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="Instead: what a diverse top by this method (mmr, dpp, msd) costs. docs/rerank.md explains."),
    ] = None,
    depth: Annotated[
        int, typer.Option(min=0, help="Of --rerank: candidates that may move; 0 for the server's default.")
    ] = 0,
    strength: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of --rerank: try every tail weight beside this strength, not every strength."),
    ] = None,
    plot: PlotOption = None,
    merge: Annotated[
        str | None,
        typer.Option(help="Of several: their mean by logit or probability, beside each. docs/merging.md explains."),
    ] = None,
    trees: Annotated[
        bool,
        typer.Option(help="Grow boosted trees as a baseline too, where scikit-learn is installed."),
    ] = True,
    weights: Annotated[str, typer.Option(help="Of --merge: comma-separated, one for each; equal if not given.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Quality of every task on the test events beside baselines, by slices, with intervals: AUC and more, or RMSE.

    The baselines are fitted on the training events of the split: how often an item was acted on, its mean label, a
    logistic regression on user and item, and boosted trees on counters and features (pip install 'mfalcon\\[quality]').
    The model is scored with the events of the target's own time hidden (strict), and by order. Slices are by length of
    history, new users, and head, tail and new items; intervals are over draws of the users. It takes about as long as
    an epoch of training, and writes nothing but --plot. --merge and --rerank tell of several models as one, and of
    diverse tops.

    A large user model is judged by how often the next liked item is among the 10 and the 50 nearest, beside popularity.
    """
    torch.set_num_threads(owned_cores())
    if merge is not None:
        if rerank is not None:
            raise ConfigError("--merge: must be given without --rerank")
        members = load_members(paths)
        first = next(iter(members.values())).model.config
        read = open_dataset(
            data_of(data, first.name), columns, items, item_columns, like_at_least, to_learn=False, scratch=scratch
        )
        part = _checked_split(read, given)
        _evaluate_merge(members, read, part, merge_method(merge), member_weights(weights, len(members)), json_output)
        return
    if weights:
        raise ConfigError("--weights: only with --merge")
    if len(paths) > 1:
        raise ConfigError(f"CHECKPOINT: got {len(paths)}, must be one without --merge")
    loaded = checkpoint.load(paths[0])
    config = loaded.model.config
    read = open_dataset(
        data_of(data, config.name), columns, items, item_columns, like_at_least, to_learn=False, scratch=scratch
    )
    part = _checked_split(read, given)
    dataset = fit_to(read, loaded)
    check_labels(dataset, loaded)
    if strength is not None and rerank is None:
        raise ConfigError("--strength: only with --rerank")
    if rerank is not None:
        _evaluate_rerank(loaded, dataset, part, rerank, depth, strength, plot, json_output)
        return
    if isinstance(loaded.model, LUM):
        if plot is not None:
            raise ConfigError(f"--plot: {config.name} is a large user model, of which there is no plot")
        _evaluate_interests(loaded.model, loaded.fingerprint, dataset, part, json_output)
        return
    if missing := missing_features(dataset, loaded):
        typer.echo(f"features that --columns does not name count as their means: {', '.join(missing)}", err=True)
    has_trees = trees and find_spec("sklearn") is not None
    if trees and not has_trees:
        typer.echo("without boosted trees, which need scikit-learn: pip install 'mfalcon[quality]'", err=True)
    evaluate_ranker(loaded, dataset, part, trees=has_trees, plot=plot, json_output=json_output)


def _checked_split(dataset: Dataset, given: Split | None) -> Split:
    """See `check_split`. Raises ConfigError where no event tests, and says what leaks."""
    part = check_split(dataset, given)
    if not np.any(split(dataset, part) == TEST):
        raise ConfigError(f"{dataset.name}: no event is for the test, which evaluate judges by")
    for line in leak_lines(dataset):
        typer.echo(line, err=True)
    return part


def _evaluate_rerank(
    loaded: Checkpoint,
    dataset: Dataset,
    part: Split,
    rerank: str,
    depth: int,
    strength: float | None,
    plot: Path | None,
    json_output: bool,
) -> None:
    _check_rerank(loaded, rerank)
    parts = split(dataset, part)
    rows = evaluate_rerank(loaded, dataset, parts == VALIDATION, parts == TEST, rerank, depth, strength)
    title = f"{loaded.model.config.name}, split {split_name(dataset, part)}, {rerank}"
    if plot is not None:
        plot_rerank(title, rows, plot)
    if json_output:
        print_json(
            {
                "checkpoint": loaded.fingerprint,
                "split": split_name(dataset, part),
                "rows": [dataclasses.asdict(r) for r in rows],
            }
        )
    else:
        Console(highlight=False).print(rerank_table(title, rows))


def _check_rerank(loaded: Checkpoint, method: str) -> None:
    if not loaded.model.ranks_items:
        raise ConfigError(f"--rerank: {loaded.model.config.name} ranks no items")
    if method not in METHODS:
        raise ConfigError(f"--rerank: got {method!r}, must be {' or '.join(map(repr, METHODS))}")


def _evaluate_interests(model: LUM, fingerprint: str, dataset: Dataset, part: Split, json_output: bool) -> None:
    parts = split(dataset, part)
    chosen = parts == TEST
    reports = [evaluate_interests(model, dataset, chosen, visibility) for visibility in _VISIBILITIES]
    reports.append(evaluate_popularity(model, dataset, chosen, parts == TRAIN))
    if json_output:
        print_json(
            {
                "checkpoint": fingerprint,
                "split": split_name(dataset, part),
                "reports": [dataclasses.asdict(r) for r in reports],
            }
        )
        return
    table = Table(
        title=f"{model.config.name}, split {split_name(dataset, part)}, next liked items",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in ("scorer", "visibility", "rows", "HR@10", "HR@50"):
        table.add_column(name, justify="left" if name in ("scorer", "visibility") else "right")
    for r in reports:
        table.add_row(r.scorer, r.visibility or "", f"{r.num_rows:,}", f"{r.hit_rate_10:.4f}", f"{r.hit_rate_50:.4f}")
    Console(highlight=False).print(table)


def _evaluate_merge(
    members: Mapping[str, Checkpoint],
    dataset: Dataset,
    part: Split,
    method: MergeMethod,
    weights: Sequence[float],
    json_output: bool,
) -> None:
    check_members(members)
    merge, chosen = merge_of(members, method), split(dataset, part) == TEST
    reports, alike = list[Report | RegressionReport](), list[Correlation]()
    for visibility in _VISIBILITIES:
        scores = score_members(members, dataset, chosen, visibility)
        reports += evaluate_merges(scores, {"merge": (merge, weights)}, dataset, visibility)
        if visibility == _VISIBILITIES[0]:
            alike = correlations(scores, merge)
    if json_output:
        print_json(
            {
                "checkpoints": {name: member.fingerprint for name, member in members.items()},
                "merge": method,
                "weights": dict(zip(members, weights, strict=True)),
                "split": split_name(dataset, part),
                "reports": [dataclasses.asdict(r) for r in reports],
                "correlations": [dataclasses.asdict(c) for c in alike],
            }
        )
        return
    console = Console(highlight=False)
    console.print(report_table(f"{len(members)} members, split {split_name(dataset, part)}, mean {method}", reports))
    for c in alike:
        console.print(f"{c.task}: correlation of {c.first} and {c.second} {c.r:.3f}", soft_wrap=True, markup=False)

"""`mfalcon evaluate`: offline quality of a checkpoint, or of several as one."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mfalcon.cli.bench_output import PlotOption
from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    open_dataset,
)
from mfalcon.cli.evaluate_rerank import evaluate_rerank, plot_rerank, rerank_table
from mfalcon.cli.members import load_members, member_weights, merge_method
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.lum import LUM
from mfalcon.rerank.order import METHODS
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import RegressionReport, Report, evaluate_baselines, evaluate_tasks
from mfalcon.train.interests import evaluate_interests, evaluate_popularity
from mfalcon.train.merging import (
    Correlation,
    check_members,
    correlations,
    evaluate_merges,
    merge_of,
    score_members,
)
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, Split, split
from mfalcon.train.vocabulary import fit_to, missing_features
from mfalcon.types import MergeMethod

_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")


def evaluate(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoint directory; several with --merge.")
    ],
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="A: the last tenth by time; B: of every user.")] = "A",
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
    weights: Annotated[str, typer.Option(help="Of --merge: comma-separated, one for each; equal if not given.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Quality of every task on the test events, beside two baselines: AUC, NE, GAUC and NDCG@10, or RMSE and MAE.

    A large user model is judged by how often the next liked item is among the 10 and the 50 nearest, beside popularity.
    The model is scored twice: with the events of the target's own time hidden (strict), and by order. The baselines,
    the item's mean label and a logistic regression on user and item, are fitted on the training events of the split.
    """
    torch.set_num_threads(owned_cores())
    if merge is not None:
        if rerank is not None:
            raise ConfigError("--merge: must be given without --rerank")
        members = load_members(paths)
        read = open_dataset(data, columns, items, item_columns, like_at_least)
        _evaluate_merge(members, read, part, merge_method(merge), member_weights(weights, len(members)), json_output)
        return
    if weights:
        raise ConfigError("--weights: only with --merge")
    if len(paths) > 1:
        raise ConfigError(f"CHECKPOINT: got {len(paths)}, must be one without --merge")
    loaded = checkpoint.load(paths[0])
    dataset = fit_to(open_dataset(data, columns, items, item_columns, like_at_least), loaded)
    parts = split(dataset, part)
    chosen = parts == TEST
    if (plot is not None or strength is not None) and rerank is None:
        raise ConfigError("--plot, --strength: only with --rerank")
    if rerank is not None:
        _check_rerank(loaded, rerank)
        rows = evaluate_rerank(loaded, dataset, parts == VALIDATION, chosen, rerank, depth, strength)
        title = f"{loaded.model.config.name}, split {part}, {rerank}"
        if plot is not None:
            plot_rerank(title, rows, plot)
        if json_output:
            print_json({"checkpoint": loaded.fingerprint, "split": part, "rows": [dataclasses.asdict(r) for r in rows]})
        else:
            Console(highlight=False).print(rerank_table(title, rows))
        return
    if isinstance(loaded.model, LUM):
        _evaluate_interests(loaded.model, loaded.fingerprint, dataset, part, json_output)
        return
    if missing := missing_features(dataset, loaded):
        typer.echo(f"features that --columns does not name count as their means: {', '.join(missing)}", err=True)
    reports = [r for visibility in _VISIBILITIES for r in evaluate_tasks(loaded.model, dataset, chosen, visibility)]
    reports += evaluate_baselines(loaded.model.config.tasks, dataset, chosen, parts == TRAIN)
    if json_output:
        print_json(
            {"checkpoint": loaded.fingerprint, "split": part, "reports": [dataclasses.asdict(r) for r in reports]}
        )
        return
    Console(highlight=False).print(report_table(f"{loaded.model.config.name}, split {part}", reports))


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
        print_json({"checkpoint": fingerprint, "split": part, "reports": [dataclasses.asdict(r) for r in reports]})
        return
    table = Table(title=f"{model.config.name}, split {part}, next liked items", title_justify="left", box=SIMPLE_HEAD)
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
                "split": part,
                "reports": [dataclasses.asdict(r) for r in reports],
                "correlations": [dataclasses.asdict(c) for c in alike],
            }
        )
        return
    console = Console(highlight=False)
    console.print(report_table(f"{len(members)} members, split {part}, mean {method}", reports))
    for c in alike:
        console.print(f"{c.task}: correlation of {c.first} and {c.second} {c.r:.3f}", soft_wrap=True, markup=False)


def report_table(title: str, reports: Sequence[Report | RegressionReport]) -> Table:
    """Reports as rows, task by task; what is no metric of a task's kind stays empty. 80 columns hold every figure."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    words = ("task", "scorer", "visibility")
    for name in (*words, "rows", "AUC", "NE", "GAUC", "NDCG@10", "RMSE", "MAE"):
        is_word = name in words
        justify: Literal["left", "right"] = "left" if is_word else "right"
        table.add_column(name, justify=justify, no_wrap=not is_word, overflow="fold" if is_word else "ellipsis")
    order = list(dict.fromkeys(r.task for r in reports))
    for r in sorted(reports, key=lambda r: order.index(r.task)):
        match r:
            case Report():
                figures = [f"{value:.4f}" for value in (r.auc, r.ne, r.gauc, r.ndcg_at_10)] + ["", ""]
            case RegressionReport():
                figures = ["", "", "", "", f"{r.rmse:.4f}", f"{r.mae:.4f}"]
        table.add_row(r.task, r.scorer, r.visibility or "", f"{r.num_rows:,}", *figures)
    return table

"""`mfalcon merge`: what serves several rankers as one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from mfalcon.cli.datasets import (
    ColumnsOption,
    DataOption,
    ItemColumnsOption,
    ItemsOption,
    LikeOption,
    open_dataset,
)
from mfalcon.cli.members import load_members, merge_method
from mfalcon.cli.report_table import report_table
from mfalcon.cores import owned_cores
from mfalcon.merging.merge import Calibration, Merge
from mfalcon.train.merging import Fitted, check_members, evaluate_merges, fit_merge, merge_of, score_members
from mfalcon.train.sequences import Visibility
from mfalcon.train.splits import TEST, VALIDATION, Split, split
from mfalcon.types import MergeMethod

_HELP = "Merge several rankers into one: weights, calibration and the TOML to serve them."

app = typer.Typer(no_args_is_help=True, help=_HELP)


@app.callback(help=_HELP)
def root() -> None:
    """Holds its subcommands."""


@app.command()
def fit(
    paths: Annotated[list[Path], typer.Argument(metavar="CHECKPOINT...", help="Checkpoint directories.")],
    name: Annotated[str, typer.Option(help="Name under which the ensemble is asked.")] = "merged",
    merge: Annotated[str, typer.Option(help="What is averaged of binary tasks: logit or probability.")] = "logit",
    data: DataOption = "ml-100k",
    columns: ColumnsOption = "",
    items: ItemsOption = None,
    item_columns: ItemColumnsOption = "",
    like_at_least: LikeOption = None,
    part: Annotated[Split, typer.Option("--split", help="A: by time; B: within users.")] = "A",
    visibility: Annotated[Visibility, typer.Option(help="Hide events of the target's own time, or not.")] = "strict",
) -> None:
    """Find weights (0 or more) and a recalibration on the validation events, and print the TOML that serves them.

    Standard error shows each member, the mean with equal weights and the fitted merge, on validation and test events. A
    member whose weight is 0 is left out of the TOML.
    """
    torch.set_num_threads(owned_cores())
    members = load_members(paths)
    check_members(members)
    dataset = open_dataset(data, columns, items, item_columns, like_at_least)
    method = merge_method(merge)
    parts, plain = split(dataset, part), merge_of(members, method)
    scores = {which: score_members(members, dataset, parts == which, visibility) for which in (VALIDATION, TEST)}
    fitted = fit_merge(scores[VALIDATION], plain)
    console = Console(stderr=True, highlight=False)
    merges = {
        "equal weights": (plain, [1.0] * len(members)),
        "fitted": (merge_of(members, method, fitted), list(fitted.weights.values())),
    }
    for title, which in (("validation", VALIDATION), ("test", TEST)):
        reports = evaluate_merges(scores[which], merges, dataset, visibility)
        console.print(report_table(f"{title} events, split {part}, mean {method}", reports))
    typer.echo(toml(name, method, dict(zip(members, paths, strict=True)), plain, fitted))


def toml(
    name: str,
    method: MergeMethod,
    paths: Mapping[str, Path],
    merge: Merge,
    fitted: Fitted,
    budget_ms: int | None = None,
) -> str:
    """The file that `mfalcon serve --config` takes. paths: of the checkpoints, by name of the member. budget_ms: after
    which the server takes what has arrived; None for its default.
    """
    kept = [member for member, weight in fitted.weights.items() if weight > 0]
    lines = []
    for member in kept:
        lines += ["[[models]]", f"name = {_text(member)}", f"checkpoint = {_text(str(paths[member]))}", ""]
    lines += ["[[ensembles]]", f"name = {_text(name)}", f"merge = {_text(method)}"]
    lines += ([] if budget_ms is None else [f"merge_budget_ms = {budget_ms}"]) + [""]
    for member in kept:
        lines += ["[[ensembles.members]]", f"model = {_text(member)}", f"weight = {fitted.weights[member]!r}", ""]
    for task, calibration in zip(merge.tasks, fitted.calibration, strict=True):
        if calibration != Calibration():
            lines += [
                "[[ensembles.calibration]]",
                f"task = {_text(task.name)}",
                f"scale = {calibration.scale!r}",
                f"shift = {calibration.shift!r}",
                "",
            ]
    return "\n".join(lines).rstrip()


def _text(text: str) -> str:
    """A basic string of TOML, which JSON's are but for the character DEL."""
    return json.dumps(text).replace("\x7f", "\\u007f")

"""What `mfalcon evaluate` shows of a ranker: every task beside the baselines, then slice by slice with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mfalcon.cli.output import print_json
from mfalcon.cli.report_table import report_table
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import MODEL, RegressionReport, Report, evaluate_scores, report_of, score_events
from mfalcon.train.sequences import Visibility, labels
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, Split, split, split_name
from mfalcon.train.standings import POPULARITY, Lead, Prediction, Standing, predict_baselines, standings

_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")


def evaluate_ranker(
    loaded: Checkpoint, dataset: Dataset, part: Split, *, trees: bool, plot: Path | None, json_output: bool
) -> None:
    """Score the test events under both visibilities, and tell. The slices are judged with strict visibility."""
    parts, tasks = split(dataset, part), loaded.model.config.tasks
    chosen, fit = parts == TEST, parts == TRAIN
    truth, users = labels(dataset, tasks)[chosen], dataset.user[chosen]
    reports, predictions = list[Report | RegressionReport](), list[Prediction]()
    for visibility in _VISIBILITIES:
        typer.echo(f"scoring {len(users):,} test events ({visibility})", err=True)
        _, scores = score_events(loaded.model, dataset, chosen, visibility)
        reports += evaluate_scores(MODEL, tasks, visibility, users, truth, scores)
        if visibility == "strict":
            predictions = [
                Prediction(task.name, MODEL, scores[:, which].astype(np.float64)) for which, task in enumerate(tasks)
            ]
    typer.echo("fitting the baselines on the training events", err=True)
    others = predict_baselines(
        dataset, chosen, fit, parts == VALIDATION, trees=trees, notify=lambda line: typer.echo(line, err=True)
    )
    for which, task in enumerate(tasks):
        for other in (other for other in others if other.task == task.name):
            report = report_of(other.scorer, task, None, users, truth[:, which], other.values)
            if other.scorer == POPULARITY and isinstance(report, Report):
                report = dataclasses.replace(report, ne=math.nan)  # a count is no chance
            reports.append(report)
    found, leads = standings(dataset, chosen, fit, [*predictions, *others], "strict")
    title = f"{loaded.model.config.name}, split {split_name(dataset, part)}"
    if plot is not None:
        plot_standings(title, found, plot)
    if json_output:
        print_json(
            {
                "checkpoint": loaded.fingerprint,
                "split": split_name(dataset, part),
                "reports": [dataclasses.asdict(row) for row in reports],
                "slices": [dataclasses.asdict(row) for row in found],
                "leads": [dataclasses.asdict(row) for row in leads],
            }
        )
        return
    console = Console(highlight=False)
    console.print(report_table(title, reports))
    for task in tasks:
        own = [standing for standing in found if standing.task == task.name]
        console.print()
        console.print(slices_table(task.name, own, [lead for lead in leads if lead.task == task.name]))
    console.print(
        "(95%): where 95 of 100 draws of the users lie. Lead: over the best baseline, above 0 where the model is "
        "better. Head items have half of the training events, new users and items none.",
        style="dim",
    )


def slices_table(task: str, found: Sequence[Standing], leads: Sequence[Lead]) -> Table:
    """A row for each slice of one task: the model with its interval, the best baseline, and the lead."""
    table = Table(title=f"{task}, strict, by slice", title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("slice", "rows", "mean", found[0].metric, "(95%)", "best baseline", "lead", "(95%)"):
        is_word = name in ("slice", "best baseline")
        table.add_column(name, justify="left" if is_word else "right", no_wrap=not is_word, overflow="fold")
    ahead = {lead.slice: lead for lead in leads}
    for standing in (standing for standing in found if standing.scorer == MODEL):
        row = [standing.slice, f"{standing.num_rows:,}", f"{standing.mean_label:.2g}", _short(standing.value)]
        row.append(f"{_short(standing.low)}-{_short(standing.high)}")
        if (lead := ahead.get(standing.slice)) is not None:
            over = next(s for s in found if (s.slice, s.scorer) == (standing.slice, lead.over))
            row += [f"{lead.over} {_short(over.value)}", _short(lead.value, "+")]
            row.append(f"{_short(lead.low, '+')} {_short(lead.high, '+')}")
        table.add_row(*row)
    return table


def _short(value: float, sign: str = "") -> str:
    """Three digits behind the point, and none before it that is 0."""
    return "?" if math.isnan(value) else f"{value:{sign}.3f}".replace("0.", ".", 1)


def plot_standings(title: str, found: Sequence[Standing], path: Path) -> None:
    """A panel for each task: every scorer's metric on every slice, with its interval. Writes a PNG."""
    from matplotlib.figure import Figure  # noqa: PLC0415 an optional dependency

    tasks = list(dict.fromkeys(standing.task for standing in found))
    names = list(dict.fromkeys(standing.slice for standing in found))
    figure = Figure(figsize=(5.2 * len(tasks), 1.2 + 0.42 * len(names)), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False).flat, tasks, strict=True):
        own = [standing for standing in found if standing.task == task and not math.isnan(standing.value)]
        scorers = list(dict.fromkeys(standing.scorer for standing in own))
        for place, scorer in enumerate(scorers):
            of = [standing for standing in own if standing.scorer == scorer]
            down = [names.index(standing.slice) + 0.7 * (place / len(scorers) - 0.5) for standing in of]
            bars = [[max(0.0, s.value - s.low) for s in of], [max(0.0, s.high - s.value) for s in of]]
            axes.errorbar([s.value for s in of], down, xerr=bars, fmt="o", markersize=3, capsize=2, label=scorer)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set(title=task, xlabel=next((s.metric for s in own), ""))
        axes.legend(fontsize="small")
    figure.suptitle(f"{title}, strict; bars hold 95 of 100 draws of the users", fontsize="small")
    figure.savefig(path, format="png", dpi=120)

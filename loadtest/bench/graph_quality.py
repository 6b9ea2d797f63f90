"""How well a ranker ranks that learns a graph of items with itself, beside one whose graph was learnt first, alone, and
one without a graph (E2E-GRec, arXiv 2511.20564, whose claim this is).

All are the bare head: `din` with side features and without counters, on MovieLens-100K, split A, strict.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.quality_runs import QualityRun, train_runs
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.models import checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import GraphTraining, model_config, train_config
from mfalcon.train.splits import TEST, VALIDATION, split

NONE, TWO_STAGE, JOINT = "none", "two-stage", "end to end"
GRAPHS: Mapping[str, GraphTraining | None] = {
    NONE: None,
    TWO_STAGE: GraphTraining(joint=False),
    JOINT: GraphTraining(),
}
_LEAST_GAIN = 0.002


@dataclass(frozen=True, slots=True)
class GraphQualityOptions:
    """architecture: of all. seeds: 0 and on."""

    architecture: str = "din"
    seeds: int = 3
    processes: int = 1


@dataclass(frozen=True, slots=True)
class GraphQualityRow:
    """Figures of one kind of graph, seed by seed. weight: that GradNorm gave the auxiliary task at last."""

    graph: str
    auc: tuple[float, ...]
    ne: tuple[float, ...]
    validation_auc: tuple[float, ...]
    weight: tuple[float, ...]
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class GraphQualityResult:
    """Everything that `mfalcon bench graph-quality` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: GraphQualityOptions
    rows: tuple[GraphQualityRow, ...]
    bars: tuple[Bar, ...]


def run(
    dataset: Dataset, options: GraphQualityOptions, directory: Path, progress: Callable[[str], None]
) -> GraphQualityResult:
    """Train what is not in `directory` yet, one thread each, and evaluate all."""
    usual, rows = train_config(options.architecture), []
    parts = split(dataset, usual.split)
    for name, graph in GRAPHS.items():
        config = model_config(dataset, options.architecture, graph=graph)
        trainings = [usual.model_copy(update={"seed": seed, "graph": graph}) for seed in range(options.seeds)]
        runs = [QualityRun(f"{options.architecture} {name}", config, training) for training in trainings]
        progress(f"{name}: {len(runs)} trainings")
        records = train_runs(dataset, runs, directory, options.processes)
        models = [checkpoint.load(directory / one.name).model for one in runs]
        tests, validations = (
            [evaluate(model, dataset, parts == part, "strict")[0] for model in models] for part in (TEST, VALIDATION)
        )
        costs = [records[one.name].cpu_seconds for one in runs]
        networks = [model.graph for model in models if model.graph is not None]
        rows.append(
            GraphQualityRow(
                graph=name,
                auc=tuple(report.auc for report in tests),
                ne=tuple(report.ne for report in tests),
                validation_auc=tuple(report.auc for report in validations),
                weight=tuple(float(one.balance[0]) for one in networks) if name == JOINT else (),
                cpu_seconds=None if None in costs else sum(cost for cost in costs if cost is not None),
            )
        )
    return GraphQualityResult("graph-quality", this_machine(), commit(), options, tuple(rows), bars(rows))


def bars(rows: Sequence[GraphQualityRow]) -> tuple[Bar, ...]:
    """What is asked of medians over seeds."""
    median = {row.graph: statistics.median(row.auc) for row in rows}
    return (
        Bar.least("two-stage over none: AUC", median[TWO_STAGE] - median[NONE], 0.0),
        Bar.least("end to end over two-stage: AUC", median[JOINT] - median[TWO_STAGE], 0.0),
        Bar.least("end to end over none: AUC", median[JOINT] - median[NONE], _LEAST_GAIN),
    )


def page(result: GraphQualityResult) -> Iterator[Part]:
    """What was measured where, each kind of graph, and the bars."""
    yield headline(result.machine, result.commit)
    rows = [
        (
            row.graph,
            *(_figure(values) for values in (row.auc, row.ne, row.validation_auc)),
            _figure(row.weight) if row.weight else "-",
            "-" if row.cpu_seconds is None else f"{row.cpu_seconds / len(row.auc):.0f}",
        )
        for row in result.rows
    ]
    title = (
        f"{result.options.architecture} on test events of MovieLens-100K, split A, strict: median (least-most) of "
        f"{result.options.seeds} seeds"
    )
    yield Table(title, ("graph", "AUC", "NE", "validation AUC", "auxiliary weight", "CPU s"), rows)
    yield bar_table(result.bars)


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"

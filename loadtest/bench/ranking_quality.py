"""How well rankers order real events: each of several seeds, merged with each other, beside baselines of the same run.

MovieLens-100K, split A: the last tenth of its events by time, mostly of users who trained nothing. Main figures are
strict: nothing of a target's own second is seen. What a merge needs (weights, calibration) is fitted on the validation
events; no choice is made by the test events.
"""

import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.bench.quality_runs import QualityRun, RunRecord, load_runs, train_runs
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.features.counters import LikeRule
from mfalcon.train.baselines import item_mean, logistic_user_item
from mfalcon.train.counters import count_events, counters_config
from mfalcon.train.dataset import Dataset
from mfalcon.train.merging import MemberScores, fit_merge, merge_of, score_members
from mfalcon.train.metrics import auc, gauc, ndcg_at, normalized_entropy
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.sequences import Visibility, labels
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split
from mfalcon.types import Ids

Reals = NDArray[np.float64] | NDArray[np.float32]

PLAIN, COUNTED, TWICE, DIN, HSTU = "dfgr", "dfgr counters", "dfgr counters twice", "din counters", "hstu"
TWO, PAIR, THREE = "two dfgr counters", "dfgr + din", "two dfgr + din"
RECIPES = (PLAIN, COUNTED, TWICE, DIN, HSTU)
DIN_ARCHITECTURE = "din"
MERGES: Mapping[str, tuple[str, ...]] = {TWO: (COUNTED, COUNTED), PAIR: (COUNTED, DIN), THREE: (COUNTED, COUNTED, DIN)}
"""Merges by name, and the recipes of their members; of one that is named twice, two seeds."""
ITEM_MEAN, LOGISTIC, TREES = "item mean", "logistic", "boosted trees"

_COLUMNS = 120
_VISIBILITIES: tuple[Visibility, ...] = ("strict", "order")

NOTES = (
    "strict: nothing of a target's own second is seen, neither in the history nor by a counter; by order: all that "
    "stands before it in the data set",
    "counters: the model reads the nine streaming counters too (docs/state.md); boosted trees read the same nine, "
    "and what is known of the user and the item",
    "merged: mean of logits, weights and calibration fitted on the validation events (`mfalcon merge fit`); equal: "
    "the same members with equal weights and no calibration",
    "CPU s: of the trainings, on one thread each",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What medians must reach. over_logistic: of every model that is no baseline."""

    least: Mapping[str, float]
    most_ne: Mapping[str, float]
    least_order: Mapping[str, float]
    over_logistic: float
    over_trees: float
    two_over_one: float


ASKED = Asked(
    least={PLAIN: 0.767, COUNTED: 0.7735, DIN: 0.774, HSTU: 0.755, PAIR: 0.778, THREE: 0.7795},
    most_ne={PLAIN: 0.838, COUNTED: 0.821, THREE: 0.813},
    least_order={PLAIN: 0.780},
    over_logistic=0.045,
    over_trees=0.01,
    two_over_one=0.002,
)


@dataclass(frozen=True, slots=True)
class RankingRow:
    """One trained seed, one merge or one baseline, on the test events; metrics are strict where nothing else is said.

    of: the seed, or the members of a merge and their weights. cpu_seconds: of training, None where nobody measured it.
    """

    scorer: str
    of: str
    auc: float
    ne: float
    gauc: float
    ndcg_at_10: float
    order_auc: float
    validation_auc: float
    cpu_seconds: float | None
    num_parameters: int | None


@dataclass(frozen=True, slots=True)
class RankingResult:
    """Everything that `mfalcon quality` knows. trained_by: the commits of the trainings."""

    benchmark: str
    machine: Machine
    commit: str | None
    trained_by: tuple[str, ...]
    rows: tuple[RankingRow, ...]
    bars: tuple[Bar, ...]
    notes: tuple[str, ...]


def run(dataset: Dataset, runs: Sequence[QualityRun], directory: Path, num_processes: int) -> RankingResult:
    """Train what is not trained yet, score the events by each, merge, and hold the medians against what is asked.

    directory: of the checkpoints. num_processes: trainings side by side.
    """
    machine = this_machine()
    records = train_runs(dataset, runs, directory, num_processes)
    rows = [*baselines(dataset), *_rankers(dataset, runs, records, directory)]
    return RankingResult(
        benchmark="ranking quality",
        machine=machine,
        commit=commit(),
        trained_by=tuple(sorted({record.commit or "unknown" for record in records.values()})),
        rows=tuple(rows),
        bars=held(rows),
        notes=NOTES,
    )


def recipes(dataset: Dataset, seeds: int, only: Sequence[str] = RECIPES) -> list[QualityRun]:
    """Every training of the recipes that are named, of several seeds. TWICE has twice the layers, which is twice the
    cost.
    """
    runs = []
    for seed in range(seeds):
        for name in only:
            architecture = DIN_ARCHITECTURE if name == DIN else HSTU if name == HSTU else PLAIN
            training = train_config(architecture).model_copy(update={"seed": seed})
            learned, is_strict = split(dataset, training.split) == TRAIN, training.visibility == "strict"
            counters = None if name in (PLAIN, HSTU) else counters_config(dataset, learned, is_strict=is_strict)
            config = model_config(dataset, architecture, counters=counters)
            if name == TWICE:
                config = model_config(dataset, architecture, counters=counters, num_layers=2 * config.stack[1])
            runs.append(QualityRun(name, config, training))
    return runs


@dataclass(frozen=True, slots=True)
class _Judge:
    """The events that scores are judged by: positions of the test and the validation events, labels of all events."""

    test: Ids
    validation: Ids
    user: Ids
    like: NDArray[np.float64]

    @staticmethod
    def of(dataset: Dataset) -> "_Judge":
        parts = split(dataset, "A")
        like = labels(dataset, dataset.tasks)[:, 0].astype(np.float64)
        return _Judge(np.flatnonzero(parts == TEST), np.flatnonzero(parts == VALIDATION), dataset.user, like)

    def row(
        self,
        scorer: str,
        of: str,
        *,
        strict: Reals,
        order: Reals,
        validation: Reals,
        cpu_seconds: float | None = None,
        num_parameters: int | None = None,
    ) -> RankingRow:
        """strict, order: chances of a like, [num_test]. validation: the same, strict, [num_validation]."""
        user, like = self.user[self.test], self.like[self.test]
        return RankingRow(
            scorer=scorer,
            of=of,
            auc=auc(like, strict),
            ne=normalized_entropy(like, strict),
            gauc=gauc(user, like, strict),
            ndcg_at_10=ndcg_at(user, like, strict, 10),
            order_auc=auc(like, order),
            validation_auc=auc(self.like[self.validation], validation),
            cpu_seconds=cpu_seconds,
            num_parameters=num_parameters,
        )


def baselines(dataset: Dataset) -> list[RankingRow]:
    """Item mean, logistic regression on user and item, and boosted trees, fitted on the training events of split A."""
    from mfalcon.train.boosted_trees import boosted_trees, known_of  # noqa: PLC0415 (needs the extra `quality`)

    parts, judge = split(dataset, "A"), _Judge.of(dataset)
    item, fit = dataset.items.rows(dataset.events["item_id"].copy()), parts == TRAIN
    mean, logistic = item_mean(item, judge.like, fit), logistic_user_item(dataset.user, item, judge.like, fit)
    known = known_of(dataset)
    strict, order = (
        boosted_trees(np.concatenate([known, counted], axis=1), judge.like, fit, parts == VALIDATION)
        for counted in (counters_of_events(dataset, is_strict=is_strict) for is_strict in (True, False))
    )
    return [
        judge.row(scorer, "", strict=seen[judge.test], order=all_seen[judge.test], validation=seen[judge.validation])
        for scorer, seen, all_seen in ((ITEM_MEAN, mean, mean), (LOGISTIC, logistic, logistic), (TREES, strict, order))
    ]


def counters_of_events(dataset: Dataset, *, is_strict: bool) -> Reals:
    """The nine streaming counters of every event, [num_events, 9], each in its own unit."""
    config = counters_config(dataset, split(dataset, "A") == TRAIN, is_strict=is_strict)
    assert config is not None  # there is a binary task, whose positive events are likes
    [task] = [task for task in dataset.tasks if task.name == config.task]
    return count_events(dataset, LikeRule.of_task(task, dataset.actions), config, is_strict=is_strict).numbers(config)


def _rankers(
    dataset: Dataset, runs: Sequence[QualityRun], records: Mapping[str, RunRecord], directory: Path
) -> Iterator[RankingRow]:
    """A row of each, then of each merge."""
    judge, parts, members = _Judge.of(dataset), split(dataset, "A"), load_runs(runs, directory)
    validation = score_members(members, dataset, parts == VALIDATION, "strict")
    strict, order = (score_members(members, dataset, parts == TEST, visibility) for visibility in _VISIBILITIES)
    for one in runs:
        yield judge.row(
            one.model,
            str(one.seed),
            strict=strict.scores[one.name][0],
            order=order.scores[one.name][0],
            validation=validation.scores[one.name][0],
            cpu_seconds=records[one.name].cpu_seconds,
            num_parameters=records[one.name].num_parameters,
        )
    of = {(one.model, one.seed): one.name for one in runs}
    seeds = {one.seed for one in runs}  # 0, 1, ...
    for scorer, models in MERGES.items():
        for keys in merged_runs(models, len(seeds)):
            if not of.keys() >= set(keys):
                continue
            names = [of[key] for key in keys]
            plain = merge_of({name: members[name] for name in names}, "logit")
            fitted = fit_merge(_only(validation, names), plain)
            merge, weights = merge_of(members, "logit", fitted), list(fitted.weights.values())
            equal = [1.0] * len(names)
            costs = [records[name].cpu_seconds for name in names]
            for title, by, shares in ((scorer, merge, weights), (f"{scorer}, equal", plain, equal)):
                merged = [
                    by([view.scores[name] for name in names], shares).task_scores[0]
                    for view in (strict, order, validation)
                ]
                yield judge.row(
                    title,
                    " + ".join(f"{share:.2f} {name}" for name, share in zip(names, shares, strict=True)),
                    strict=merged[0],
                    order=merged[1],
                    validation=merged[2],
                    cpu_seconds=None if None in costs else sum(cost for cost in costs if cost is not None),
                    num_parameters=sum(records[name].num_parameters for name in names),
                )


def merged_runs(models: Sequence[str], num_seeds: int) -> list[list[tuple[str, int]]]:
    """Members (recipe, seed) of each merge of these recipes: of every seed and, for a recipe that is named again, of
    the next one. None of them twice, and no merge twice.
    """
    found: dict[frozenset[tuple[str, int]], list[tuple[str, int]]] = {}
    for seed in range(num_seeds):
        keys = [(model, (seed + models[:at].count(model)) % num_seeds) for at, model in enumerate(models)]
        if len(set(keys)) == len(keys):
            found.setdefault(frozenset(keys), keys)
    return list(found.values())


def _only(scores: MemberScores, names: Sequence[str]) -> MemberScores:
    return MemberScores(scores.index, {name: scores.scores[name] for name in names}, scores.labels)


def medians(rows: Sequence[RankingRow], figure: str) -> dict[str, float]:
    """Of a figure of the rows, by scorer."""
    scorers = dict.fromkeys(row.scorer for row in rows)
    return {name: statistics.median(getattr(row, figure) for row in rows if row.scorer == name) for name in scorers}


def held(rows: Sequence[RankingRow]) -> tuple[Bar, ...]:
    """What is asked of the medians over seeds, and whether it is so."""
    area, ne, order = (medians(rows, figure) for figure in ("auc", "ne", "order_auc"))

    def over(one: str, other: str) -> float | None:
        return area[one] - area[other] if one in area and other in area else None

    bars = [Bar.least(f"{name}: strict AUC", area.get(name), least) for name, least in ASKED.least.items()]
    bars += [Bar.most(f"{name}: strict NE", ne.get(name), most) for name, most in ASKED.most_ne.items()]
    bars += [Bar.least(f"{name}: AUC by order", order.get(name), least) for name, least in ASKED.least_order.items()]
    bars += [
        Bar.least(f"{name}: strict AUC over {LOGISTIC}", over(name, LOGISTIC), ASKED.over_logistic)
        for name in (PLAIN, COUNTED, DIN, HSTU)
    ]
    bars.append(Bar.least(f"{COUNTED}: strict AUC over {TREES}", over(COUNTED, TREES), ASKED.over_trees))
    bars.append(Bar.least(f"{TWO}: strict AUC over one", over(TWO, COUNTED), ASKED.two_over_one))
    bars.append(Bar.least(f"{TWO}: strict AUC over one of twice the cost", over(TWO, TWICE), 0.0))
    return tuple(bars)


def page(result: RankingResult) -> Iterator[Part]:
    """Where it was measured, medians, bars, every row, and what the words mean."""
    yield headline(result.machine, result.commit)
    yield f"Trained by commit {', '.join(result.trained_by)}."
    yield _summary(result.rows)
    yield bar_table(result.bars)
    columns = ("scorer", "of", *_FIGURES.values(), "CPU s", "parameters")
    rows = [
        (
            *(row.scorer, row.of),
            *(_four(getattr(row, figure)) for figure in _FIGURES),
            *(_whole(row.cpu_seconds), _whole(row.num_parameters)),
        )
        for row in result.rows
    ]
    yield Table("Every seed and merge", columns, rows)
    yield "\n".join(textwrap.fill(f"- {note}", _COLUMNS, subsequent_indent="  ") for note in result.notes)


_FIGURES = {
    "auc": "AUC",
    "ne": "NE",
    "gauc": "GAUC",
    "ndcg_at_10": "NDCG@10",
    "order_auc": "AUC by order",
    "validation_auc": "validation AUC",
}


def _summary(rows: Sequence[RankingRow]) -> Table:
    lines = []
    for scorer in dict.fromkeys(row.scorer for row in rows):
        mine = [row for row in rows if row.scorer == scorer]
        spreads = []
        for figure in _FIGURES:
            values = [getattr(row, figure) for row in mine]
            spread = f" ({_four(min(values))}-{_four(max(values))})" if len(values) > 1 else ""
            spreads.append(f"{_four(statistics.median(values))}{spread}")
        costs = [row.cpu_seconds for row in mine if row.cpu_seconds is not None]
        lines.append((scorer, *spreads, _whole(statistics.median(costs) if costs else None)))
    return Table(
        "Test events of MovieLens-100K, split A: median over seeds (least-most)",
        ("scorer", *_FIGURES.values(), "CPU s"),
        lines,
    )


def _four(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"

"""What item rows that are refreshed while a model serves are worth, and what each policy of KV states takes of that.

MovieLens-100K, split A, strict. A share of the items is unknown to the checkpoint, which learns without them. Their
rows and all others go on learning from the events of the test period as these come, behind the layers of the
checkpoint, and come to the engine as deltas. The engine is the one that serves, on a clock of the events; each group of
test events of a user and a time is one Rank of all items before these events are acknowledged.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from loadtest.bench.quality_runs import QualityRun, train_runs
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.ranker import RankerOptions
from mfalcon.items.delta import Delta
from mfalcon.items.live import LiveOptions
from mfalcon.kvcache.item_rows import RowPolicy
from mfalcon.models import checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.item_rows import ItemRows, without_items
from mfalcon.train.metrics import auc
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.sequences import labels
from mfalcon.train.splits import TEST, VALIDATION, split
from mfalcon.types import Append, Floats, Ids, ItemsPolicy, RankRequest, no_events

Way = ItemsPolicy | Literal["none"]
WAYS: Final[tuple[Way, ...]] = ("none", "exact", "bounded", "frozen")
NOTES = (
    "none: the checkpoint's rows to the end, to which the items that it does not know are one",
    "HR@k: share of the liked test events whose item is among the first k of all items that the user has not acted on",
    "found: ranks, of those whose user has ranked before, that reused all of the state which that left",
    "reused: tokens of all ranks that came from states",
    "what a user did before the test period is encoded at his first rank in it",
)
_ARCHITECTURE = "dfgr"
_READY_S = 120.0
_BEST = (10, 50)


@dataclass(frozen=True, slots=True)
class ItemsQualityOptions:
    """new_items: share that the checkpoint does not know. refreshes: deltas in the test period, after equally many
    events each. keep_s: of `bounded`, in the time of the events. seeds: 0 and on.
    """

    new_items: float = 0.2
    refreshes: int = 100
    keep_s: float = 600.0
    seeds: int = 3
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Served:
    """Figures of one seed and one way. auc_new: of the test events of items that the checkpoint does not know."""

    auc: float
    auc_new: float
    hit_rates: tuple[float, ...]
    found: float
    reused: float


@dataclass(frozen=True, slots=True)
class WayRow:
    """One way, seed by seed."""

    way: Way
    seeds: tuple[Served, ...]


@dataclass(frozen=True, slots=True)
class ItemsQualityResult:
    """Everything that `mfalcon bench items --quality` knows. rows_per_delta: mean over all but the first."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    options: ItemsQualityOptions
    num_ranks: int
    rows_per_delta: float
    rows: tuple[WayRow, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One pass over the test events. marks: position of the event before which each delta is applied."""

    way: Way
    path: Path
    dataset: Dataset
    is_test: NDArray[np.bool_]
    deltas: tuple[Delta, ...]
    marks: tuple[int, ...]
    keep_s: float


@dataclass(slots=True)
class _Clock:
    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@dataclass(slots=True)
class _Seen:
    scores: list[tuple[int, float]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Of liked items, 0 is the best."""
    num_again: int = 0
    num_found: int = 0
    num_reused: int = 0
    num_encoded: int = 0
    left: dict[int, int] = field(default_factory=dict)
    """Tokens of a user's state after his last rank."""


def run(
    dataset: Dataset, options: ItemsQualityOptions, directory: Path, progress: Callable[[str], None]
) -> ItemsQualityResult:
    """Train what is not in `directory` yet, one thread each, and serve every way."""
    hidden = np.random.default_rng(0).random(len(dataset.items.item_id)) < options.new_items
    known = without_items(dataset, hidden)
    training = train_config(_ARCHITECTURE)
    config = model_config(known, _ARCHITECTURE)
    runs = [QualityRun("items", config, training.model_copy(update={"seed": seed})) for seed in range(options.seeds)]
    progress(f"{len(runs)} trainings without {np.count_nonzero(hidden)} of {len(hidden)} items")
    train_runs(known, runs, directory, options.processes)
    parts = split(dataset, training.split)
    groups, tasks, sizes = groups_of(dataset, parts == TEST), list[Task](), list[int]()
    for one in runs:
        progress(f"{one.name}: rows go on learning")
        deltas, marks = deltas_of(directory / one.name, one, dataset, parts, groups, options.refreshes)
        sizes += [delta.num_rows for delta in deltas[1:]]
        for way in WAYS:
            sent = (deltas, marks) if way != "none" else ((), ())
            tasks.append(Task(way, directory / one.name, dataset, parts == TEST, *sent, options.keep_s))
    progress(f"{len(tasks)} passes of {len(groups)} ranks each")
    found = _all_served(tasks, options.processes)
    rows = [
        WayRow(way, tuple(served for task, served in zip(tasks, found, strict=True) if task.way == way)) for way in WAYS
    ]
    mean_rows = float(np.mean(sizes)) if sizes else 0.0
    return ItemsQualityResult(
        "items-quality", this_machine(), commit(), NOTES, options, len(groups), mean_rows, tuple(rows)
    )


def groups_of(dataset: Dataset, chosen: NDArray[np.bool_]) -> list[Ids]:
    """Positions of the chosen events, those of one user and one time together: they do not see each other."""
    positions = np.flatnonzero(chosen)
    user, time_ms = dataset.user[positions], dataset.events["time_ms"][positions]
    starts = np.flatnonzero((user[1:] != user[:-1]) | (time_ms[1:] != time_ms[:-1])) + 1
    return np.split(positions, starts)


def deltas_of(
    path: Path, trained: QualityRun, dataset: Dataset, parts: NDArray[np.int8], groups: Sequence[Ids], refreshes: int
) -> tuple[tuple[Delta, ...], tuple[int, ...]]:
    """What goes on learning sends, and before which event it comes: the first delta is of the validation events."""
    learner = ItemRows(
        checkpoint.load(path, torch.float32), dataset, trained.training.model_copy(update={"visibility": "strict"})
    )
    marks = [int(part[0][0]) for part in np.array_split(np.array(groups, dtype=object), refreshes) if len(part)]
    learner.learn(parts == VALIDATION)
    deltas, position = [learner.delta(1)], np.arange(len(parts))
    for number, (first, stop) in enumerate(pairwise(marks), start=2):
        learner.learn((position >= first) & (position < stop))
        deltas.append(learner.delta(number))
    return tuple(deltas), tuple(marks)


def _all_served(tasks: Sequence[Task], processes: int) -> list[Served]:
    if processes == 1:
        return [served(task) for task in tasks]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return list(pool.map(served, tasks))


def served(task: Task) -> Served:
    """One pass by an engine of its own, on one thread."""
    torch.set_num_threads(1)
    return asyncio.run(_served(task))


async def _served(task: Task) -> Served:
    clock, dataset = _Clock(), task.dataset
    policy = RowPolicy("exact" if task.way == "none" else task.way, task.keep_s, clock)
    loaded = checkpoint.load(task.path, torch.float32)
    config = EngineConfig(threads=1, ranker=RankerOptions(kv_budget_bytes=256 << 20, live=LiveOptions(policy)))
    engine = compose(loaded, config)
    try:
        await asyncio.to_thread(engine.wait_ready, _READY_S)
        truth = labels(dataset, loaded.model.config.tasks)[:, 0]
        seen, coming = _Seen(), list(zip(task.marks, task.deltas, strict=True))
        for group in groups_of(dataset, task.is_test):
            while coming and coming[0][0] <= group[0]:
                await engine.update_items("", coming.pop(0)[1])
            clock.seconds = int(dataset.events["time_ms"][group[0]]) / 1e3
            await _rank(engine, dataset, group, truth, seen)
    finally:
        await engine.close()
    index, scores = np.array([one[0] for one in seen.scores]), np.array([one[1] for one in seen.scores])
    is_new = loaded.items.rows(np.ascontiguousarray(dataset.events["item_id"][index])) == 0
    places, num_tokens = np.array(seen.places), seen.num_reused + seen.num_encoded
    return Served(
        auc=auc(truth[index], scores),
        auc_new=auc(truth[index][is_new], scores[is_new]),
        hit_rates=tuple(float(np.mean(places < k)) for k in _BEST),
        found=seen.num_found / max(1, seen.num_again),
        reused=seen.num_reused / max(1, num_tokens),
    )


async def _rank(engine: Engine, dataset: Dataset, group: Ids, truth: Floats, seen: _Seen) -> None:
    """Rank all items, and acknowledge what the user then did."""
    user, first = int(dataset.user[group[0]]), int(group[0])
    user_id, items = dataset.user_ids[user], dataset.items.item_id
    before = dataset.of_user(user)
    before = before[before < first]
    if user not in seen.left and len(before):
        await engine.append_events(user_id, Append(dataset.events[before]))
    now_ms = int(dataset.events["time_ms"][first])
    request = RankRequest(user_id, items, 0, now_ms, no_events(), {})
    result = await engine.rank(request, None)
    assert result.history_len == len(before)
    reused, encoded = result.cache.reused_tokens, result.cache.encoded_tokens
    if (left := seen.left.get(user)) is not None:
        seen.num_again += 1
        seen.num_found += reused >= left
    seen.num_reused, seen.num_encoded = seen.num_reused + reused, seen.num_encoded + encoded
    seen.left[user] = reused + encoded
    is_open = ~np.isin(items, dataset.events["item_id"][before])
    for position in group:
        place = int(np.searchsorted(items, dataset.events["item_id"][position]))
        seen.scores.append((int(position), float(result.task_scores[0, place])))
        if truth[position]:
            ahead = (result.scores > result.scores[place]) | (
                (result.scores == result.scores[place]) & (items < items[place])
            )
            seen.places.append(int(np.count_nonzero(ahead & is_open)))
    await engine.append_events(user_id, Append(dataset.events[group]))


def page(result: ItemsQualityResult) -> Iterator[Part]:
    """What was measured where, and the ways."""
    yield headline(result.machine, result.commit)
    options = result.options
    yield (
        f"{options.new_items:.0%} of the items are unknown to the checkpoint, {options.refreshes} deltas of "
        f"{result.rows_per_delta:,.0f} rows in the test period beside {result.num_ranks:,} ranks; bounded keeps states "
        f"for {options.keep_s:g} s of the events' time."
    )
    columns = ("policy", "AUC", "AUC of new items", *(f"HR@{k}" for k in _BEST), "states found", "tokens reused")
    rows = [
        (
            row.way,
            _figure([one.auc for one in row.seeds]),
            _figure([one.auc_new for one in row.seeds]),
            *(_figure([one.hit_rates[index] for one in row.seeds]) for index in range(len(_BEST))),
            f"{statistics.median(one.found for one in row.seeds):.1%}",
            f"{statistics.median(one.reused for one in row.seeds):.1%}",
        )
        for row in result.rows
    ]
    title = f"Test events of MovieLens-100K, split A, strict: median (least-most) of {options.seeds} seeds"
    yield Table(title, columns, rows)
    yield "\n".join(f"- {note}" for note in result.notes)


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"

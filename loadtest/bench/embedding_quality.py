"""How well a model ranks whose item vectors share memory, beside a plain table of as many bytes and modulo hashing.

All are `din` on MovieLens-100K, split A, strict. Ids only: the model sees no side feature and no counter, so that what
it knows of an item is its vector. A plain table of fewer bytes has rows for the most frequent items of the training
events and one for all others; modulo hashing has a row for each remainder of the id.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loadtest.bench.quality_runs import QualityRun, train_runs
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.models import checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import EmbeddingConfig
from mfalcon.models.items import ItemTable
from mfalcon.train.counters import counters_config
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.splits import TEST, TRAIN, split
from mfalcon.types import Ids

PLAIN, MODULO, MIX, PUBLISHED = "plain table", "modulo", "robe-mix", "robe-v0"
IDS, ALL = "ids only", "with side features and counters"
_ARCHITECTURE = "din"
_LEAST_AT_10, _MOST_LOST = 0.745, 0.003
_NUMBER_BYTES = 4


@dataclass(frozen=True, slots=True)
class EmbeddingQualityOptions:
    """compressions: a table of all items is so many times as large. block: of the arrays. seeds: 0 and on."""

    compressions: tuple[int, ...] = (1, 10, 100, 1_000)
    block: int = 8
    seeds: int = 3
    processes: int = 1


@dataclass(frozen=True, slots=True)
class Variant:
    """A data set as one kind of table sees it, and what the model is then."""

    inputs: str
    kind: str
    compression: int
    dataset: Dataset
    config: RankerConfig

    @property
    def name(self) -> str:
        """Of its trainings."""
        inputs = "ids" if self.inputs == IDS else "all"
        return f"{inputs} {self.kind} {self.compression}"


@dataclass(frozen=True, slots=True)
class EmbeddingQualityRow:
    """Test figures of one variant, seed by seed. table_bytes: of the vectors of ids."""

    inputs: str
    kind: str
    compression: int
    table_bytes: int
    auc: tuple[float, ...]
    ne: tuple[float, ...]
    cpu_seconds: float | None


@dataclass(frozen=True, slots=True)
class EmbeddingQualityResult:
    """Everything that `mfalcon bench embeddings --quality` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: EmbeddingQualityOptions
    rows: tuple[EmbeddingQualityRow, ...]
    bars: tuple[Bar, ...]


def run(
    dataset: Dataset, options: EmbeddingQualityOptions, directory: Path, progress: Callable[[str], None]
) -> EmbeddingQualityResult:
    """Train what is not in `directory` yet, one thread each, and evaluate all."""
    training = train_config(_ARCHITECTURE)
    rows = []
    for variant in variants(dataset, options):
        runs = [
            QualityRun(variant.name, variant.config, training.model_copy(update={"seed": seed}))
            for seed in range(options.seeds)
        ]
        progress(f"{variant.name}: {len(runs)} trainings")
        records = train_runs(variant.dataset, runs, directory, options.processes)
        is_test = split(variant.dataset, training.split) == TEST
        models = [checkpoint.load(directory / one.name).model for one in runs]
        reports = [evaluate(model, variant.dataset, is_test, "strict")[0] for model in models]
        costs = [records[one.name].cpu_seconds for one in runs]
        rows.append(
            EmbeddingQualityRow(
                inputs=variant.inputs,
                kind=variant.kind,
                compression=variant.compression,
                table_bytes=models[0].items.id.weight.numel() * _NUMBER_BYTES,
                auc=tuple(report.auc for report in reports),
                ne=tuple(report.ne for report in reports),
                cpu_seconds=None if None in costs else sum(cost for cost in costs if cost is not None),
            )
        )
    return EmbeddingQualityResult("embedding-quality", this_machine(), commit(), options, tuple(rows), bars(rows))


def variants(dataset: Dataset, options: EmbeddingQualityOptions) -> Iterator[Variant]:
    """Every table of every size. With side features and counters the whole table and `robe-mix` alone."""
    learned = split(dataset, "A") == TRAIN
    nothing_else = replace(dataset, items=_bare(dataset.items.item_id), side_features=())
    counters = counters_config(dataset, learned, is_strict=False)
    dim = model_config(dataset, _ARCHITECTURE).dim
    for compression in options.compressions:
        num_rows = max(2, dataset.items.num_rows // compression)
        megabytes = num_rows * dim * _NUMBER_BYTES / 1e6

        def robe(kind: str, megabytes: float = megabytes) -> EmbeddingConfig:
            content = {"kind": kind, "memory_mb": megabytes, "block": options.block}
            return EmbeddingConfig.model_validate(content)

        for kind, seen in (
            (PLAIN, _frequent(nothing_else, num_rows, learned)),
            *([(MODULO, _modulo(nothing_else, num_rows))] if compression > 1 else []),
        ):
            yield Variant(IDS, kind, compression, seen, model_config(seen, _ARCHITECTURE))
        for kind in (MIX, PUBLISHED):
            config = model_config(nothing_else, _ARCHITECTURE, embedding=robe(kind))
            yield Variant(IDS, kind, compression, nothing_else, config)
        if compression == 1:
            config = model_config(dataset, _ARCHITECTURE, counters=counters)
            yield Variant(ALL, PLAIN, compression, dataset, config)
        config = model_config(dataset, _ARCHITECTURE, counters=counters, embedding=robe(MIX))
        yield Variant(ALL, MIX, compression, dataset, config)


def _bare(item_ids: Ids) -> ItemTable:
    return ItemTable(item_ids, ("",) * len(item_ids), {})


def _frequent(dataset: Dataset, num_rows: int, learned: np.ndarray) -> Dataset:
    """The most frequent items have the rows of a table that also has one for all others."""
    ids, counts = np.unique(dataset.events["item_id"][learned], return_counts=True)
    rest = np.setdiff1d(dataset.items.item_id, ids)
    kept = np.concatenate([ids[np.argsort(-counts, kind="stable")], rest])[: num_rows - 1]
    return replace(dataset, items=_bare(np.sort(kept)))


def _modulo(dataset: Dataset, num_rows: int) -> Dataset:
    """Items of one remainder are one item."""
    events = dataset.events.copy()
    events["item_id"] %= num_rows - 1
    return replace(dataset, events=events, items=_bare(np.arange(num_rows - 1)))


def bars(rows: Sequence[EmbeddingQualityRow]) -> tuple[Bar, ...]:
    """What is asked of medians over seeds."""
    median = {(row.inputs, row.kind, row.compression): statistics.median(row.auc) for row in rows}

    def gain(over: str) -> float | None:
        ours, other = median.get((IDS, MIX, 100)), median.get((IDS, over, 100))
        return None if ours is None or other is None else ours - other

    whole, hundredth = median.get((ALL, PLAIN, 1)), median.get((ALL, MIX, 100))
    lost = None if whole is None or hundredth is None else whole - hundredth
    return (
        Bar.least("ids only, robe-mix at a tenth: AUC", median.get((IDS, MIX, 10)), _LEAST_AT_10),
        Bar.least("ids only, robe-mix at a hundredth, over a plain table of as many bytes: AUC", gain(PLAIN), 0.0),
        Bar.least("ids only, robe-mix at a hundredth, over modulo hashing: AUC", gain(MODULO), 0.0),
        Bar.most("with side features and counters, robe-mix at a hundredth loses AUC", lost, _MOST_LOST),
    )


def page(result: EmbeddingQualityResult) -> Iterator[Part]:
    """What was measured where, the variants and the bars."""
    yield headline(result.machine, result.commit)
    rows = [
        (
            row.inputs,
            row.kind,
            f"1/{row.compression:,}",
            f"{row.table_bytes:,}",
            _figure(row.auc),
            _figure(row.ne),
            "-" if row.cpu_seconds is None else f"{row.cpu_seconds / len(row.auc):.0f}",
        )
        for row in result.rows
    ]
    title = f"Test events of MovieLens-100K, split A, strict: median (least-most) of {result.options.seeds} seeds"
    yield Table(title, ("the model reads", "vectors of ids", "size", "bytes", "AUC", "NE", "CPU s"), rows)
    yield bar_table(result.bars)


def _figure(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"

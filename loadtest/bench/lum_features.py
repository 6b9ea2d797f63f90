"""What interests are worth to a head that reads nothing else of the kind: with few labels of its own, and with all.

MovieLens-100K or another data set, split A, strict. A DLRM-style head (`din`) without counters learns with and without
the features of a large user model. Few labels: the head's users are of one half, and the model was pre-trained on the
other. All labels: features are cross-fitted.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, bar_table, headline
from loadtest.report.table import Part, Table
from mfalcon.models.lum import LUM
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.interest_features import as_columns, cross_fitted, halves, interest_features
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.splits import TEST, TRAIN, split
from mfalcon.train.trainer import train
from mfalcon.types import Floats

Mask = NDArray[np.bool_]

_HEAD = "din"
_LEAST_GAIN = 0.02


@dataclass(frozen=True, slots=True)
class LumFeaturesOptions:
    """rows: labelled events of the head, about. epochs: of the pre-training and of the head. seeds: of the head."""

    rows: int = 8_000
    lum_epochs: int = 8
    head_epochs: int = 6
    seeds: int = 3


@dataclass(frozen=True, slots=True)
class LumFeaturesRow:
    """One seed of the head: test AUC without and with interests. labels: how many it learnt from."""

    labels: int
    seed: int
    without: float
    with_interests: float

    @property
    def gain(self) -> float:
        """In AUC."""
        return self.with_interests - self.without


@dataclass(frozen=True, slots=True)
class LumFeaturesResult:
    """Everything that `mfalcon bench lum-features` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: LumFeaturesOptions
    rows: tuple[LumFeaturesRow, ...]
    bars: tuple[Bar, ...]


def run(dataset: Dataset, options: LumFeaturesOptions, progress: Callable[[str], None]) -> LumFeaturesResult:
    """Train everything. The bar: with few labels the head gains .02; with all nothing is expected."""
    parts, half = split(dataset, "A"), halves(dataset)
    train_half, rows = (parts == TRAIN) & (half == 0), list[LumFeaturesRow]()
    is_seen = np.zeros(len(dataset.user_ids), dtype=np.bool_)
    is_seen[dataset.user[parts == TRAIN]] = True
    with tempfile.TemporaryDirectory() as scratch:
        head = partial(_row, dataset, options, Path(scratch), progress)
        models = [_pretrained(dataset, options, half != 0, Path(scratch) / "lum-0", progress)]
        few = interest_features(models[0], dataset, "strict")
        rows += [head(_labelled(dataset, train_half, options.rows, seed), few, seed) for seed in range(options.seeds)]
        models.append(_pretrained(dataset, options, half != 1, Path(scratch) / "lum-1", progress))
        crossed = cross_fitted(models, dataset, half, is_seen, "strict")
        rows += [head(parts == TRAIN, crossed, seed) for seed in range(options.seeds)]
    few_gain, all_gain = (
        float(np.mean([row.gain for row in rows if (row.labels > 2 * options.rows) == is_all]))
        for is_all in (False, True)
    )
    bars = (
        Bar.least(f"a head of about {options.rows:,} labels: mean gain in AUC", few_gain, _LEAST_GAIN),
        Bar.least("a head of all labels: mean gain in AUC (none expected)", all_gain, -1.0),
    )
    return LumFeaturesResult("lum-features", this_machine(), commit(), options, tuple(rows), bars)


def _pretrained(
    dataset: Dataset, options: LumFeaturesOptions, learn: Mask, scratch: Path, progress: Callable[[str], None]
) -> LUM:
    progress(f"pre-training on {int((learn & (split(dataset, 'A') == TRAIN)).sum()):,} events")
    config = train_config("lum").model_copy(update={"epochs": options.lum_epochs})
    model = train(dataset, model_config(dataset, "lum"), config, scratch, lambda _: None, learn=learn)
    assert isinstance(model, LUM)
    return model


def _row(
    dataset: Dataset,
    options: LumFeaturesOptions,
    scratch: Path,
    progress: Callable[[str], None],
    learn: Mask,
    features: Floats,
    seed: int,
) -> LumFeaturesRow:
    num = int(learn.sum())
    without, with_interests = (
        _head(replace(dataset, dense=dense), options, learn, seed, scratch / f"{seed}-{num}-{how}")
        for how, dense in (("without", {}), ("with", as_columns(features)))
    )
    progress(f"{num:,} labels, seed {seed}: {without:.4f} without, {with_interests:.4f} with interests")
    return LumFeaturesRow(num, seed, without, with_interests)


def _head(dataset: Dataset, options: LumFeaturesOptions, learn: Mask, seed: int, scratch: Path) -> float:
    """Test AUC."""
    changes = {"epochs": options.head_epochs, "seed": seed, "visibility": "strict"}
    config = train_config(_HEAD).model_copy(update=changes)
    model = train(dataset, model_config(dataset, _HEAD), config, scratch, lambda _: None, learn=learn)
    report, _, _ = evaluate(model, dataset, split(dataset, "A") == TEST, "strict")
    return report.auc


def _labelled(dataset: Dataset, allowed: Mask, num: int, seed: int) -> Mask:
    """All allowed events of users drawn until there are so many."""
    users = np.random.default_rng(seed).permutation(np.unique(dataset.user[allowed]))
    counts = np.bincount(dataset.user[allowed], minlength=len(dataset.user_ids))[users]
    chosen = users[: 1 + int(np.searchsorted(np.cumsum(counts), num))]
    return allowed & np.isin(dataset.user, chosen)


def page(result: LumFeaturesResult) -> Iterator[Part]:
    """Every seed, and the bars."""
    yield headline(result.machine, result.commit)
    rows = [
        (f"{row.labels:,}", str(row.seed), f"{row.without:.4f}", f"{row.with_interests:.4f}", f"{row.gain:+.4f}")
        for row in sorted(result.rows, key=lambda row: (row.labels, row.seed))
    ]
    columns = ("labels", "seed", "without", "with", "gain")
    yield Table("Test AUC (strict) of a head without and with interests", columns, rows)
    yield bar_table(result.bars)

"""The short runs that a plan rests on: each trains by the same number of steps, and is kept as one file of JSON.

Equal epochs would give a history of 50 events three times the steps of one of 200, and plan nonsense.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from mfalcon.errors import ConfigError
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_kinds import Frozen
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split, thinned
from mfalcon.train.trainer import run_identity, train

EPOCHS = 5
"""Times that a run is validated."""
_LANE = 32
"""Width of a head, as in the default recipe."""


class Shape(Frozen):
    """What the law is about. max_history: events. users_share: of the training users."""

    layers: int
    dim: int
    max_history: int
    users_share: float

    @property
    def name(self) -> str:
        """Of its file."""
        return f"L{self.layers}-d{self.dim}-n{self.max_history}-u{self.users_share:g}"

    def model(self, dataset: Dataset) -> RankerConfig:
        """The ranker of this shape, with heads as wide as those of the default recipe where that divides the width."""
        heads = next(heads for heads in range(max(1, self.dim // _LANE), 0, -1) if self.dim % heads == 0)
        return model_config(
            dataset,
            "dfgr",
            dim=self.dim,
            num_layers=self.layers,
            num_heads=heads,
            max_history=self.max_history,
            window_chunk=max(1, self.max_history // 2),
        )

    def training(self, steps: int, seed: int) -> TrainConfig:
        """How a run of this shape trains, by so many steps."""
        share = None if self.users_share == 1 else self.users_share
        return TrainConfig(
            epochs=EPOCHS, patience=EPOCHS, steps_per_epoch=-(-steps // EPOCHS), users_share=share, seed=seed
        )

    @property
    def work(self) -> float:
        """What a step costs, in no unit: what comes with each layer, and what grows with tokens and width."""
        return (1 + self.layers) * (150 + self.max_history * (1 + self.dim / 16 + self.max_history / 100))


Row = tuple[int, float, float, float]
"""Layers, and shares of the most width, of the longest history and of the users."""

FITTED: tuple[Row, ...] = (
    (2, 1, 1 / 2, 1), (1, 1 / 4, 1 / 2, 1), (2, 1 / 2, 1 / 2, 1 / 2), (1, 1, 1 / 4, 1),
    (2, 1 / 4, 1 / 8, 1), (4, 1 / 2, 1 / 2, 1), (1, 1 / 2, 1, 1 / 4), (2, 1, 1 / 8, 1 / 2),
    (4, 1 / 4, 1 / 4, 1 / 4), (1, 1, 1 / 2, 1 / 8), (2, 1 / 2, 1 / 4, 1), (1, 1 / 2, 1 / 8, 1 / 4),
    (2, 1, 1, 1), (4, 1, 1 / 4, 1 / 2), (1, 1 / 4, 1, 1 / 2), (2, 1 / 2, 1, 1 / 8),
    (4, 1 / 2, 1 / 4, 1 / 4), (2, 1 / 4, 1 / 2, 1 / 4), (1, 1 / 2, 1 / 2, 1), (4, 1, 1 / 8, 1),
)  # fmt: skip
"""The runs that the law is fitted to: each value of each size with several of the others."""
HELD_OUT: tuple[Row, ...] = ((4, 1, 1 / 2, 1), (2, 1 / 2, 1 / 2, 1), (1, 1, 1 / 2, 1 / 2), (2, 1 / 2, 1 / 4, 1 / 4))
"""Runs that judge the law of the others first."""
PROBES: tuple[Row, ...] = (
    *((layers, dim, history, 1.0) for layers in (1, 4) for dim in (1 / 4, 1.0) for history in (1 / 8, 1.0)),
    (2, 1 / 2, 1 / 2, 1.0),
)
"""What latency is learned from: corners, and the middle."""
_SPACE: tuple[Row, ...] = tuple(
    product((1, 2, 3, 4), (1 / 4, 1 / 2, 3 / 4, 1.0), (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0), (1.0,))
)


class Reach(Frozen):
    """How far the runs reach, and so what may be chosen: up to this width and history, and 4 layers."""

    dim: int = Field(default=64, ge=8, le=4_096, multiple_of=4)
    max_history: int = Field(default=200, ge=16, le=65_536)

    def shapes(self, rows: Iterable[Row]) -> tuple[Shape, ...]:
        """Those of the grid, in numbers."""
        return tuple(
            Shape(
                layers=layers,
                dim=round(self.dim * dim),
                max_history=round(self.max_history * history),
                users_share=users,
            )
            for layers, dim, history, users in rows
        )

    @property
    def space(self) -> tuple[Shape, ...]:
        """What may be chosen."""
        return self.shapes(_SPACE)


class RunRecord(Frozen):
    """What came of one run. validation, test: AUC of the first binary task, strict; test is None where all its events
    have one label. events: that it learned from.
    """

    identity: str
    shape: Shape
    steps: int
    seed: int
    events: int
    validation: float
    test: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class GridProgress:
    """Between two runs. seconds_left: of all that remain, None before the first is done."""

    index: int
    num_runs: int
    shape: Shape
    record: RunRecord | None
    seconds_left: float | None
    was_kept: bool = False


def run_grid(
    dataset: Dataset,
    shapes: Sequence[Shape],
    steps: int,
    seed: int,
    out: Path,
    report: Callable[[GridProgress], None],
) -> list[RunRecord]:
    """Train every shape that `out` has no result of, and return all results in the order of the shapes.

    A process that ends at any moment loses no finished run, and of the one that it was in no finished epoch.

    Raises ConfigError for a result of other data or settings, before anything is trained.
    """
    kept = {shape: _read(out, shape, _identity(dataset, shape, steps, seed)) for shape in shapes}
    seconds = work = 0.0
    records = []
    for index, shape in enumerate(shapes):
        record = kept[shape]
        was_kept = record is not None
        ahead = sum(other.work for other in shapes[index:] if kept[other] is None)
        if record is None:
            left = ahead * seconds / work if work else None
            report(GridProgress(index, len(shapes), shape, None, left))
            record = _run(dataset, shape, steps, seed, out)
        seconds, work = seconds + record.seconds, work + shape.work
        ahead -= 0.0 if was_kept else shape.work
        report(GridProgress(index, len(shapes), shape, record, ahead * seconds / work, was_kept))
        records.append(record)
    return records


def _identity(dataset: Dataset, shape: Shape, steps: int, seed: int) -> str:
    return run_identity(dataset, shape.model(dataset), shape.training(steps, seed))


def _read(out: Path, shape: Shape, identity: str) -> RunRecord | None:
    path = out / "runs" / f"{shape.name}.json"
    if not path.is_file():
        return None
    try:
        record = RunRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConfigError(f"{path}: is no result of a run; delete it to run that again") from error
    if record.identity != identity:
        raise ConfigError(
            f"{path}: is of other data, steps, seed or version; give another --out, or delete it to start over"
        )
    return record


def _run(dataset: Dataset, shape: Shape, steps: int, seed: int, out: Path) -> RunRecord:
    """Train and judge one shape, and write its file as a whole."""
    began = time.perf_counter()
    training = shape.training(steps, seed)
    progress = out / "unfinished" / shape.name
    model = train(dataset, shape.model(dataset), training, progress, lambda _: None)
    parts = split(dataset, training.split)
    learned = parts if training.users_share is None else thinned(parts, dataset, training.users_share)
    test = evaluate(model, dataset, parts == TEST, "strict")[0].auc
    record = RunRecord(
        identity=_identity(dataset, shape, steps, seed),
        shape=shape,
        steps=steps,
        seed=seed,
        events=int(np.count_nonzero(learned == TRAIN)),
        validation=evaluate(model, dataset, parts == VALIDATION, "strict")[0].auc,
        test=test if math.isfinite(test) else None,
        seconds=time.perf_counter() - began,
    )
    directory = out / "runs"
    directory.mkdir(parents=True, exist_ok=True)
    scratch = directory / f".{shape.name}.partial"
    scratch.write_text(record.model_dump_json(indent=1) + "\n")
    scratch.replace(directory / f"{shape.name}.json")
    shutil.rmtree(progress, ignore_errors=True)
    return record

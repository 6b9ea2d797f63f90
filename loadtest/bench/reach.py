"""What layers cost and rank that see a part of a long history, beside layers that see all of it (docs/models.md)."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from kernels.reach import Reach
from loadtest.bench.quality_runs import QualityRun, train_runs
from loadtest.bench.shapes import (
    REQUEST_TIME_MS,
    events_between,
    random_events,
    random_targets,
    ranker_config,
    shape_named,
)
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import headline
from loadtest.report.table import Part, Table
from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import ServedModel, serve
from mfalcon.models import checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_layers import ReachConfig
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.splits import TEST, VALIDATION, split

FULL, LATER, ALL = "none", "all but the first", "all"
"""Layers that see a part."""
_LONG, _SHORT = Reach(tokens=256, targets=1_024, first=64), Reach(tokens=16, targets=64, first=4)
_PREFILLS_OF = 20
"""A prefill is measured once in so many rounds."""
_LEAST_PREFILLS = 3


@dataclass(frozen=True, slots=True)
class ReachOptions:
    """shape: of the model. rounds: of score and append, of all models in turns. reach: of layers that see a part."""

    shape: str = "S"
    num_events: int = 10_000
    num_candidates: int = 1_000
    threads: int = 2
    microbatch: int = 96
    rounds: int = 200
    reach: Reach = _LONG


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of a phase. ratio: the median of full attention over this one."""

    p50: float
    p99: float
    ratio: float


@dataclass(frozen=True, slots=True)
class ReachRow:
    """layers: that see a part. score: all candidates against a cached state. append: one event. unread_bytes: of keys
    and values in the state that nothing will read.
    """

    layers: str
    backend: str
    score: Times
    append: Times
    prefill: Times
    unread_bytes: int


@dataclass(frozen=True, slots=True)
class ReachResult:
    """Everything that `mfalcon bench reach` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: ReachOptions
    rows: tuple[ReachRow, ...]


def with_reach(config: RankerConfig, reach: Reach) -> Mapping[str, RankerConfig]:
    """A ranker of full attention, and those of which some layers see a part."""
    num_layers, part = config.stack[1], ReachConfig(**asdict(reach))
    of = {FULL: None, LATER: (None, *[part] * (num_layers - 1)), ALL: (part,) * num_layers}
    return {name: config.model_copy(update={"reach": layers}) for name, layers in of.items()}


@torch.inference_mode()
def measure(options: ReachOptions, progress: Callable[[str], None]) -> ReachResult:
    """All models take turns, with the same weights and the same user."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = ranker_config(shape_named(options.shape))
    weights = build(config).state_dict()
    served: dict[str, ServedModel] = {}
    for name, of in with_reach(config, options.reach).items():
        model = build(of).eval().requires_grad_(False)
        model.load_state_dict(weights)
        served[name] = serve(model)
    events, targets = random_events(options.num_events + 1, 0), random_targets(options.num_candidates, 0)
    history, newest = (
        events_between(events, *part)
        for part in ((0, options.num_events), (options.num_events, options.num_events + 1))
    )
    states = {name: prefill(one, history) for name, one in served.items()}
    seconds: dict[tuple[str, str], list[float]] = {}

    def timed(phase: str, name: str, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        seconds.setdefault((phase, name), []).append(time.perf_counter() - began)

    num_prefills = max(_LEAST_PREFILLS, options.rounds // _PREFILLS_OF)
    for turn in range(options.rounds):
        if turn % 50 == 0:
            progress(f"round {turn} of {options.rounds}")
        for name, one in served.items():
            state = states[name]
            timed("score", name, lambda: score(one, state, targets, REQUEST_TIME_MS, options.microbatch))  # noqa: B023
            timed("append", name, lambda: append(one, state, newest))  # noqa: B023
            if turn < num_prefills:
                timed("prefill", name, lambda: prefill(one, history))  # noqa: B023
    rows = []
    for name, one in served.items():
        scored, appended, encoded = (
            _times(seconds[phase, name], seconds[phase, FULL]) for phase in ("score", "append", "prefill")
        )
        rows.append(ReachRow(name, one.name, scored, appended, encoded, unread_bytes(one, options.num_events)))
    return ReachResult("reach", this_machine(), commit(), options, tuple(rows))


def unread_bytes(served: ServedModel, num_events: int) -> int:
    """Keys and values in a state that no later token and no target reads: pages hold all layers of their tokens."""
    model, num_tokens = served.model, num_events * served.model.tokens_per_event
    shape = model.kv_shape()
    read = [num_tokens if of is None else max(of.tokens, of.of_targets) + of.first for of in model.config.reach or ()]
    a_token = shape.num_heads * (shape.qk_dim + shape.v_dim) * shape.dtype.itemsize
    return sum(max(0, num_tokens - kept) for kept in read) * a_token


def _times(seconds: list[float], full: list[float]) -> Times:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return Times(float(p50), float(p99), statistics.median(full) / statistics.median(seconds))


def page(result: ReachResult) -> Iterator[Part]:
    """Times of each model."""
    yield headline(result.machine, result.commit)
    options = result.options
    columns = ("layers that see a part", "backend", "score p50 / p99", "append p50 / p99", "prefill p50 / p99")
    rows = [
        (
            row.layers,
            row.backend,
            *(f"{of.p50:.1f} / {of.p99:.1f} ({of.ratio:.1f}x)" for of in (row.score, row.append, row.prefill)),
            f"{row.unread_bytes / 1e6:.0f}",
        )
        for row in result.rows
    ]
    title = (
        f"ms (times as fast as full attention) at n={options.num_events}, m={options.num_candidates}, shape "
        f"{options.shape}, {options.threads} threads; tokens {options.reach.tokens}, targets "
        f"{options.reach.targets}, first {options.reach.first}"
    )
    yield Table(title, (*columns, "never read again, MB"), rows)


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """Of dfgr on MovieLens-100K, whose longest history has 737 events. seeds: 0 and on."""

    max_history: int = 512
    seeds: int = 2
    reach: Reach = _SHORT


@dataclass(frozen=True, slots=True)
class QualityRow:
    """Figures seed by seed."""

    layers: str
    auc: tuple[float, ...]
    ne: tuple[float, ...]
    validation_auc: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QualityResult:
    """Everything that `mfalcon bench reach-quality` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: QualityOptions
    rows: tuple[QualityRow, ...]


def quality(
    dataset: Dataset, options: QualityOptions, directory: Path, processes: int, progress: Callable[[str], None]
) -> QualityResult:
    """Train what is not in `directory` yet, one thread each, and evaluate all on the test events."""
    usual, rows = train_config("dfgr"), []
    parts = split(dataset, usual.split)
    base = model_config(dataset, "dfgr", max_history=options.max_history, window_chunk=options.max_history // 2)
    for name, config in with_reach(base, options.reach).items():
        progress(f"{name}: {options.seeds} trainings")
        label = f"reach {name}"
        runs = [QualityRun(label, config, usual.model_copy(update={"seed": seed})) for seed in range(options.seeds)]
        train_runs(dataset, runs, directory, processes)
        models = [checkpoint.load(directory / one.name).model for one in runs]
        tests, validations = (
            [evaluate(model, dataset, parts == part, "strict")[0] for model in models] for part in (TEST, VALIDATION)
        )
        auc, ne = tuple(one.auc for one in tests), tuple(one.ne for one in tests)
        rows.append(QualityRow(name, auc, ne, tuple(one.auc for one in validations)))
    return QualityResult("reach-quality", this_machine(), commit(), options, tuple(rows))


def quality_page(result: QualityResult) -> Iterator[Part]:
    """AUC and NE of each model."""
    yield headline(result.machine, result.commit)
    options = result.options
    rows = [(row.layers, *map(_figure, (row.auc, row.ne, row.validation_auc))) for row in result.rows]
    title = (
        f"dfgr of {options.max_history} events on test events of MovieLens-100K, split A, strict: median (least-most) "
        f"of {options.seeds} seeds; tokens {options.reach.tokens}, targets {options.reach.targets}, first "
        f"{options.reach.first}"
    )
    yield Table(title, ("layers that see a part", "AUC", "NE", "validation AUC"), rows)


def _figure(values: tuple[float, ...]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f}-{max(values):.4f})"

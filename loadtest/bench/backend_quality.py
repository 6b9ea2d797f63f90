"""What a backend's rounding does to a ranking: every backend that runs here against float64, on a trained checkpoint.

Two measures. The test events of a data set, scored request by request as they are served: AUC. And whole rankings: for
some users every item of the checkpoint as a candidate: rank correlation and how many of the best ten stay.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loadtest.bench.state_quality import Scorer, spearman
from loadtest.report.machine import Machine, commit, this_machine
from mfalcon.algorithm import prefill, score
from mfalcon.backends.choice import REFERENCE, runnable
from mfalcon.backends.select import ServedModel, serve
from mfalcon.models import checkpoint
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import report
from mfalcon.types import Floats
from mfalcon.window import WindowRule

NOTES = (
    "auc_change: of the test events, strict visibility, against float64 on the reference backend",
    "worst_difference: of any score of any of those rankings; spearman and top_10: of the first binary task's scores "
    "over all items, the least and the mean over the users",
    "the model's own weights are rounded to bfloat16 where dtype is bfloat16; int8: 8-bit KV pages",
)

_TOP = 10
_MICROBATCH = 96


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One backend against float64; see NOTES."""

    dtype: str
    backend: str
    auc: float
    auc_change: float
    worst_difference: float
    spearman_least: float
    spearman_mean: float
    top_10_least: float
    top_10_mean: float


@dataclass(frozen=True, slots=True)
class BackendQuality:
    """Everything that `mfalcon bench backend-quality` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    model: str
    fingerprint: str
    num_rows: int
    num_users: int
    num_items: int
    notes: tuple[str, ...]
    rows: tuple[BackendRow, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    """auc of the test events; rankings: scores of all items, [num_users, num_tasks, num_items]."""

    auc: float
    rankings: Floats


def measure(
    path: Path, dataset: Dataset, is_target: NDArray[np.bool_], num_users: int, progress: Callable[[str], None]
) -> BackendQuality:
    """Load the checkpoint in each dtype and score through each backend. Users: the first ones with test events."""
    users = np.unique(dataset.user[is_target])[:num_users]
    progress("float64, reference")
    exact = checkpoint.load(path, torch.float64)
    truth = _find(exact, serve(exact.model, REFERENCE), dataset, is_target, users)
    which = [task.kind for task in exact.model.config.tasks].index("binary")
    rows = []
    for dtype, name, loaded, served in _backends(path):
        progress(f"{dtype}, {name}")
        rows.append(_row(dtype, name, truth, _find(loaded, served, dataset, is_target, users), which))
    return BackendQuality(
        benchmark="backend-quality",
        machine=this_machine(),
        commit=commit(),
        model=exact.model.config.name,
        fingerprint=exact.fingerprint,
        num_rows=int(is_target.sum()),
        num_users=len(users),
        num_items=len(exact.items.item_id),
        notes=NOTES,
        rows=tuple(rows),
    )


def _backends(path: Path) -> Iterator[tuple[str, str, Checkpoint, ServedModel]]:
    for dtype in (torch.float32, torch.bfloat16):
        loaded = checkpoint.load(path, dtype)
        text = str(dtype).removeprefix("torch.")
        choices = runnable(torch.device("cpu"), dtype)
        for choice in choices:
            yield text, choice.name, loaded, serve(loaded.model, choice.name)
        if choices[0].kernel is not None:
            yield text, f"{choices[0].name}, int8", loaded, serve(loaded.model, choices[0].name, kv_dtype="int8")


def _find(
    loaded: Checkpoint, served: ServedModel, dataset: Dataset, is_target: NDArray[np.bool_], users: NDArray[np.int64]
) -> _Found:
    scorer = Scorer(loaded, dataset, is_target, "strict", served)
    scores = scorer.scores(lambda state: state, "once")
    auc = report(loaded.model, dataset, scorer.positions, scores, "strict").auc
    with torch.inference_mode():
        rankings = np.stack([_ranking(loaded, served, dataset, int(user)) for user in users])
    return _Found(auc, rankings)


def _ranking(loaded: Checkpoint, served: ServedModel, dataset: Dataset, user: int) -> Floats:
    """Scores of every item for a user after all their events: [num_tasks, num_items]."""
    config, cpu = loaded.model.config, torch.device("cpu")
    history = dataset.events[dataset.of_user(user)]
    window = history[WindowRule(config.max_history, config.window_chunk).start(len(history)) :]
    now = int(history["time_ms"][-1]) + 60_000
    codes = torch.from_numpy(context_codes(config.context_features, {}, now))
    rows = torch.from_numpy(loaded.items.keys(loaded.items.item_id))
    state = prefill(served, event_tokens(window, loaded.items, cpu))
    scores: Floats = score(served, state, Targets(rows, codes), now, _MICROBATCH).double().numpy().T
    return scores


def _row(dtype: str, backend: str, truth: _Found, found: _Found, task: int) -> BackendRow:
    pairs = list(zip(truth.rankings[:, task], found.rankings[:, task], strict=True))
    correlations = [spearman(a, b) for a, b in pairs]
    overlaps = [len(np.intersect1d(_best(a), _best(b))) / _TOP for a, b in pairs]
    return BackendRow(
        dtype=dtype,
        backend=backend,
        auc=found.auc,
        auc_change=found.auc - truth.auc,
        worst_difference=float(np.abs(truth.rankings - found.rankings).max()),
        spearman_least=min(correlations),
        spearman_mean=float(np.mean(correlations)),
        top_10_least=min(overlaps),
        top_10_mean=float(np.mean(overlaps)),
    )


def _best(scores: Floats) -> NDArray[np.int64]:
    return np.argsort(-scores, kind="stable")[:_TOP]

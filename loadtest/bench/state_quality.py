"""What payloads narrower than the model's numbers do to a ranking: the test events of a data set, scored against states
that went through `mfalcon/kvcache/codec.py` as they do on their way through Redis.

Two ways. once: the user's state is encoded and decoded once, after it was computed exactly; a prefix of it is the state
of an earlier moment, because tokens are encoded one by one. chained: the state goes through the payload at every step
between two of the user's test events, and what is appended is computed from what came back, as where replicas take
turns with a user: the worst that serving can do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from mfalcon.algorithm import append, prefill, score
from mfalcon.backends.select import ServedModel, reference
from mfalcon.kvcache.chunk import PayloadDtype
from mfalcon.kvcache.codec import decode, encode
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import EventTokens, Targets, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import report
from mfalcon.train.sequences import Columns, Visibility, Window, windows
from mfalcon.types import Events, Floats, Ids

NOTES = (
    "once: the state was encoded and decoded once; chained: at every step between two test events of the user, and "
    "what was appended is computed from what came back, the worst that serving can do",
    "exact: the same computation with the state as it is, as `mfalcon evaluate` scores",
    "worst score: largest difference of any task's score; Spearman: of the first binary task's scores over all rows",
)

How = Literal["once", "chained"]
HOWS: tuple[How, ...] = ("once", "chained")
_AUC_BAR = 0.0005


@dataclass(frozen=True, slots=True)
class QualityRow:
    """One payload, visibility and way, against exact states."""

    payload: str
    visibility: Visibility
    how: How
    auc: float
    exact_auc: float
    worst_difference: float
    spearman: float


@dataclass(frozen=True, slots=True)
class QualityResult:
    """Everything that `mfalcon bench state-quality` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    model: str
    fingerprint: str
    num_rows: int
    notes: tuple[str, ...]
    rows: tuple[QualityRow, ...]
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Targets that one request would score: of one time and number of visible events."""

    visible: int
    time_ms: int
    positions: Ids


def measure(
    checkpoint: Checkpoint,
    dataset: Dataset,
    is_target: NDArray[np.bool_],
    progress: Callable[[str], None],
    payloads: tuple[str, ...] = ("float32", "bfloat16", "int8"),
    visibilities: tuple[Visibility, ...] = ("strict", "order"),
) -> QualityResult:
    """Score the chosen events, bool [num_events], through every payload."""
    rows: list[QualityRow] = []
    for visibility in visibilities:
        progress(f"{visibility}: exact states")
        scorer = Scorer(checkpoint, dataset, is_target, visibility)
        exact = scorer.scores(lambda state: state, "once")
        for name in payloads:
            dtype = PayloadDtype.from_name(name)
            for how in HOWS:
                progress(f"{visibility}: {name}, {how}")
                scores = scorer.scores(partial(round_trip, dtype=dtype), how)
                rows.append(_row(scorer, name, how, exact, scores))
    moved = [(row, abs(row.auc - row.exact_auc)) for row in rows if row.payload in ("bfloat16", "int8")]
    return QualityResult(
        benchmark="state-quality",
        machine=this_machine(),
        commit=commit(),
        model=checkpoint.model.config.name,
        fingerprint=checkpoint.fingerprint,
        num_rows=int(is_target.sum()),
        notes=NOTES,
        rows=tuple(rows),
        bars=tuple(Bar.most(f"{row.payload} {row.visibility} {row.how}: AUC moves", by, _AUC_BAR) for row, by in moved),
    )


def round_trip(state: KVState, dtype: PayloadDtype) -> KVState:
    """A state as it comes back from Redis."""
    if not state.num_tokens:
        return state
    payload = encode(state, 0, state.num_tokens, dtype)
    return decode([(payload, state.num_tokens)], state.pool, dtype)


class Scorer:
    """The chosen events under one visibility, request by request. served: the reference if not given."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dataset: Dataset,
        is_target: NDArray[np.bool_],
        visibility: Visibility,
        served: ServedModel | None = None,
    ) -> None:
        self.checkpoint, self.dataset, self.visibility = checkpoint, dataset, visibility
        self._served = served or reference(checkpoint.model)
        config = checkpoint.model.config
        self._windows = windows(dataset, is_target, visibility, config.max_history, config.window_chunk)
        self._columns = Columns(dataset, config, visibility)
        self.positions = np.flatnonzero(is_target)

    def scores(self, through: Callable[[KVState], KVState], how: How) -> Floats:
        """Scores of all tasks, [num_targets, num_tasks] in the order of `positions`."""
        model = self.checkpoint.model
        found = np.zeros((len(self.dataset.events), len(model.config.tasks)), dtype=np.float32)
        with torch.inference_mode():
            for window in self._windows:
                groups = list(_groups(window, self.dataset.events))
                states = self._once if how == "once" else self._chained
                for group, state in zip(groups, states(window, groups, through), strict=True):
                    found[group.positions] = self._score(state, group)
        return found[self.positions]

    def _once(self, window: Window, groups: list[_Group], through: Callable[[KVState], KVState]) -> Iterator[KVState]:
        model = self.checkpoint.prefix_model
        state = through(prefill(self._served, self._tokens(window.prefix)))
        for group in groups:
            yield KVState(state.pool, state.run, group.visible * model.tokens_per_event)

    def _chained(
        self, window: Window, groups: list[_Group], through: Callable[[KVState], KVState]
    ) -> Iterator[KVState]:
        state = self._served.empty_state()
        for seen, visible in pairwise([0, *(group.visible for group in groups)]):
            if visible > seen:
                state = through(append(self._served, state, self._tokens(window.prefix[seen:visible])))
            yield state

    def _tokens(self, positions: Ids) -> EventTokens:
        return event_tokens(self.dataset.events[positions], self.dataset.items, torch.device("cpu"))

    def _score(self, state: KVState, group: _Group) -> Floats:
        columns, positions = self._columns, torch.from_numpy(group.positions)
        dense = None if columns.dense is None else columns.dense[positions]
        targets = Targets(columns.rows[positions], columns.context[int(positions[0])], dense)
        out: Floats = score(self._served, state, targets, group.time_ms, len(group.positions)).float().numpy()
        return out


def _groups(window: Window, events: Events) -> Iterator[_Group]:
    """In ascending order of what they see."""
    times = events["time_ms"][window.targets]
    keys = np.stack([window.visible, times], axis=1)
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    for index, row in enumerate(first):
        chosen = window.targets[which.reshape(-1) == index]
        yield _Group(int(window.visible[row]), int(times[row]), chosen)


def _row(scorer: Scorer, payload: str, how: How, exact: Floats, scores: Floats) -> QualityRow:
    model, dataset, visibility = scorer.checkpoint.model, scorer.dataset, scorer.visibility
    right = report(model, dataset, scorer.positions, exact, visibility)
    found = report(model, dataset, scorer.positions, scores, visibility)
    which = [task.kind for task in model.config.tasks].index("binary")
    return QualityRow(
        payload=payload,
        visibility=visibility,
        how=how,
        auc=found.auc,
        exact_auc=right.auc,
        worst_difference=float(np.abs(exact - scores).max()),
        spearman=spearman(exact[:, which], scores[:, which]),
    )


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation, ties at their average rank. a, b: [n]."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Floats) -> NDArray[np.float64]:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[which]
    return ranks

"""From a data set to training sequences: windows of a user's events with the targets that see them.

A target is one event to predict; it sees the events of its user before it, cut by the same window rule that serving
uses, so a trained model meets in production what it met in training. Visibility "strict" hides events of the same
millisecond as the target; "order" shows every earlier event of the log.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfalcon.features.counters import LikeRule
from mfalcon.features.standard import standard
from mfalcon.models.base import EventTokens, Ranker, Targets, context_codes
from mfalcon.models.config import RankerConfig, Task
from mfalcon.train.counters import count_events
from mfalcon.train.dataset import Dataset
from mfalcon.train.graph_features import with_graph
from mfalcon.train.scratch import empty, pieces
from mfalcon.types import Floats, Ids
from mfalcon.window import WindowRule

_HOUR_MS = 3_600_000
"""What is derived of a request's time depends on no more than its hour."""

Visibility = Literal["strict", "order"]


@dataclass(frozen=True, slots=True)
class Window:
    """Targets that share a window start.

    prefix: positions in the data set of the longest visible prefix. targets: positions of the targets.
    visible: how many events of the prefix each target sees.
    """

    prefix: Ids
    targets: Ids
    visible: Ids


def visible_events(times: Ids, visibility: Visibility) -> Ids:
    """How many events of a user's history (times [n], ascending) each of its events sees: int64 [n]."""
    if visibility == "order":
        return np.arange(len(times), dtype=np.int64)
    return np.searchsorted(times, times, side="left").astype(np.int64)


class Windows(Sequence[Window]):
    """Windows that are made when they are asked for: of each event there are three numbers, of each window four."""

    def __init__(self, order: Ids, targets: Ids, visible: Ids, bounds: Ids) -> None:
        """order: positions in the data set, one user's behind another's. targets: of all windows, where in `order`.
        visible: of each, how many events of its prefix it sees. bounds: [num_windows, 3]: where in `order` the prefix
        begins and ends, and where in `targets` those of the window end.
        """
        self._order, self._targets, self._visible, self._bounds = order, targets, visible, bounds

    @property
    def prefix_len(self) -> Ids:
        """[num_windows] events of each prefix."""
        return self._bounds[:, 1] - self._bounds[:, 0]

    def __len__(self) -> int:
        """How many there are."""
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | list[Window]:
        """One of them, or several."""
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        first, stop, end = self._bounds[index].tolist()
        at = range(len(self))[index]
        begin = int(self._bounds[at - 1, 2]) if at else 0
        return Window(self._order[first:stop], self._order[self._targets[begin:end]], self._visible[begin:end])


def windows(
    dataset: Dataset,
    is_target: NDArray[np.bool_],
    visibility: Visibility,
    max_history: int,
    window_chunk: int,
    *,
    alone: bool = False,
) -> Windows:
    """All windows that have a target. is_target: bool [num_events]. alone: each target has one of its own, where none
    would save anything by sharing it.
    """
    num_events, scratch = len(dataset.events), dataset.scratch
    order = empty(num_events, np.int64, scratch)
    order[:] = np.argsort(dataset.user, kind="stable")
    num_targets = int(np.count_nonzero(is_target))
    targets, visible = empty(num_targets, np.int64, scratch), empty(num_targets, np.int64, scratch)
    bounds = [np.empty((0, 3), dtype=np.int64)]
    window = WindowRule(max_history, window_chunk)
    ends = np.cumsum(np.bincount(dataset.user, minlength=len(dataset.user_ids)))
    done = 0
    for first, last in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        positions = order[first:last]
        chosen = np.flatnonzero(is_target[positions])
        if len(chosen) == 0:
            continue
        seen = visible_events(dataset.events["time_ms"][positions], visibility)[chosen]
        starts = np.array([window.start(int(v)) for v in seen])
        at = slice(done, done + len(chosen))
        targets[at], visible[at] = first + chosen, seen - starts
        # What a target sees never shrinks from one to the next, and so neither does the start: each window is a run.
        ends_run = np.ones(len(chosen), dtype=np.bool_)
        if not alone:
            ends_run[:-1] = np.diff(starts) != 0
        run = np.flatnonzero(ends_run)
        bounds.append(np.stack([first + starts[run], first + seen[run], done + run + 1], axis=1))
        done += len(chosen)
    return Windows(order, targets, visible, np.concatenate(bounds))


def windows_of(model: Ranker, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility) -> Windows:
    """The windows of a model: targets share those whose prefix is encoded once for all of them."""
    config = model.config
    window = config.max_history, config.window_chunk
    return windows(dataset, is_target, visibility, *window, alone=not model.encodes_prefix)


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows padded to the longest. valid: [batch, n]; what is named after targets, and visible: [batch, m]."""

    events: EventTokens
    valid: Tensor
    targets: Targets
    visible: Tensor
    target_times: Tensor
    target_valid: Tensor
    target_index: Tensor


class Columns:
    """A data set as tensors that batches are gathered from; the event past the end is padding."""

    def __init__(self, dataset: Dataset, config: RankerConfig, visibility: Visibility) -> None:
        events, scratch = dataset.events, dataset.scratch
        self._pad = len(events)
        items = replace(dataset.items, is_open=config.shared is not None)
        rows, actions, times = (empty(len(events) + 1, np.int64, scratch) for _ in range(3))
        values = empty(len(events) + 1, np.float64, scratch)
        context = empty((len(events) + 1, len(dataset.context_features)), np.int64, scratch)
        truth = empty((len(events), len(config.tasks)), np.float32, scratch)
        for at in pieces(len(events)):
            part = replace(dataset, user=dataset.user[at], events=events[at])
            rows[at] = items.keys(np.ascontiguousarray(part.events["item_id"]))
            actions[at], values[at] = part.events["actions"], part.events["value"]
            times[at], context[at] = part.events["time_ms"], event_context(part)
            truth[at] = labels(part, config.tasks)
        for column in (rows, actions, times, values, context):
            column[-1] = 0
        self.rows, self.actions, self.times = (torch.from_numpy(column) for column in (rows, actions, times))
        self.values, self.context, self.labels = map(torch.from_numpy, (values, context, truth))
        self.dense = _padded(event_features(dataset, config, visibility)) if config.dense_inputs else None

    def batch(self, group: Sequence[Window]) -> Batch:
        """Pad and stack windows."""
        prefix = self._stack([window.prefix for window in group])
        target = self._stack([window.targets for window in group])
        visible = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w.visible) for w in group], batch_first=True)
        events = EventTokens(self.rows[prefix], self.actions[prefix], self.values[prefix], self.times[prefix])
        dense = None if self.dense is None else self.dense[target]
        targets = Targets(self.rows[target], self.context[target], dense)
        return Batch(events, prefix != self._pad, targets, visible, self.times[target], target != self._pad, target)

    def _stack(self, positions: Sequence[Ids]) -> Tensor:
        rows = [torch.from_numpy(p) for p in positions]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad)


def _padded(column: NDArray[np.generic]) -> Tensor:
    tensor = torch.from_numpy(column)
    return torch.cat([tensor, torch.zeros_like(tensor[:1])])


def event_context(dataset: Dataset) -> Ids:
    """Context codes of every event as if it were a request: int64 [num_events, num_features]."""
    features = dataset.context_features
    by_user = {
        f.name: column[dataset.user] for f in features if (column := dataset.user_context.get(f.name)) is not None
    }
    out = np.empty((len(dataset.events), len(features)), dtype=np.int64)
    for index, feature in enumerate(features):
        if feature.name in by_user:
            out[:, index] = by_user[feature.name]
        else:
            hours, of = np.unique(dataset.events["time_ms"] // _HOUR_MS, return_inverse=True)
            codes = [context_codes((feature,), {}, int(hour) * _HOUR_MS)[0] for hour in hours]
            out[:, index] = np.array(codes, dtype=np.int64)[of]
    return out


def event_features(dataset: Dataset, config: RankerConfig, visibility: Visibility) -> Floats:
    """Standardised dense features of every event, then its counters: [num_events, num_features]."""
    out = np.zeros((len(dataset.events), len(config.dense_features)), dtype=np.float32)
    for index, feature in enumerate(config.dense_features):
        if feature.name in dataset.dense:
            out[:, index] = standard(feature, dataset.dense[feature.name])
    if config.counters is not None:
        like = LikeRule.of(config)
        counts = count_events(dataset, like, config.counters, is_strict=visibility == "strict")
        out = np.concatenate([out, counts.features(config.counters)], axis=1)
    return out


def labels(dataset: Dataset, tasks: Sequence[Task]) -> NDArray[np.float32]:
    """Label of every event and task: float32 [num_events, num_tasks]."""
    columns = []
    for task in tasks:
        if task.kind == "regression":
            column = dataset.events["value"]
        elif task.value_at_least is not None:
            column = dataset.events["value"] >= task.value_at_least
        else:
            mask = sum(1 << dataset.actions.index(action) for action in task.any_action)
            column = (dataset.events["actions"] & mask) != 0
        columns.append(column.astype(np.float32))
    return np.stack(columns, axis=1)


def grouped(items: Sequence[Window], batch_size: int, rng: np.random.Generator | None) -> Iterator[list[Window]]:
    """Batches of windows of similar length; shuffled when a generator is given."""
    length = (
        items.prefix_len if isinstance(items, Windows) else np.array([len(w.prefix) for w in items], dtype=np.int64)
    )
    length = length // 40
    jitter = rng.random(len(items)) if rng else np.zeros(len(items))
    order = np.lexsort((jitter, length))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if rng:
        rng.shuffle(batches)
    for batch in batches:
        yield [items[index] for index in batch]


def whole(model: Ranker, batch: Batch) -> Batch:
    """With the features of the graph, if the model reads one, by the vectors that it has."""
    if model.graph is None:
        return batch
    of_targets, of_events = (model.graph.vectors[rows] for rows in (batch.targets.rows, batch.events.rows))
    targets = with_graph(batch.targets, batch.events, batch.visible, of_targets, of_events, model.config)
    return replace(batch, targets=targets)


def outputs(model: Ranker, batch: Batch) -> Tensor:
    """Raw task outputs of every target of a whole batch, with gradients: [batch, m, num_tasks]."""
    return model.outputs(batch.events, batch.valid, batch.targets, batch.visible, batch.target_times)


def forward(model: Ranker, batch: Batch) -> Tensor:
    """The same of a batch as it was gathered."""
    return outputs(model, whole(model, batch))

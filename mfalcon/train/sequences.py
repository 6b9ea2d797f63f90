"""From a data set to training sequences: windows of a user's events with the targets that see them.

A target is one event to predict; it sees the events of its user before it, cut by the same window rule that serving
uses, so a trained model meets in production what it met in training. Visibility "strict" hides events of the same
millisecond as the target; "order" shows every earlier event of the log.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

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
from mfalcon.types import Floats, Ids
from mfalcon.window import WindowRule

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


def windows(
    dataset: Dataset,
    is_target: NDArray[np.bool_],
    visibility: Visibility,
    max_history: int,
    window_chunk: int,
    *,
    alone: bool = False,
) -> list[Window]:
    """All windows that have a target. is_target: bool [num_events]. alone: each target has one of its own, where none
    would save anything by sharing it.
    """
    out = []
    order = np.argsort(dataset.user, kind="stable")
    bounds = np.searchsorted(dataset.user[order], np.arange(len(dataset.user_ids) + 1))
    for first, last in pairwise(bounds):
        positions = order[first:last]
        chosen = np.flatnonzero(is_target[positions])
        if len(chosen) == 0:
            continue
        visible = visible_events(dataset.events["time_ms"][positions], visibility)[chosen]
        window = WindowRule(max_history, window_chunk)
        starts = np.array([window.start(int(v)) for v in visible])
        if alone:
            ends = zip(starts, visible, chosen, strict=True)
            out += [Window(positions[a:v], positions[i : i + 1], np.array([v - a])) for a, v, i in ends]
            continue
        for start in np.unique(starts):
            here = starts == start
            stop = int(visible[here].max())
            out.append(Window(positions[start:stop], positions[chosen[here]], visible[here] - start))
    return out


def windows_of(model: Ranker, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility) -> list[Window]:
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
        events = dataset.events
        self._pad = len(events)
        items = replace(dataset.items, is_open=config.shared is not None)
        rows = items.keys(np.ascontiguousarray(events["item_id"]))
        self.rows = _padded(rows)
        self.actions = _padded(events["actions"].astype(np.int64))
        self.values = _padded(events["value"].astype(np.float64))
        self.times = _padded(np.ascontiguousarray(events["time_ms"]))
        self.context = _padded(event_context(dataset))
        self.dense = _padded(event_features(dataset, config, visibility)) if config.dense_inputs else None
        self.labels = torch.from_numpy(labels(dataset, config.tasks))

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
            out[:, index] = [context_codes((feature,), {}, int(t))[0] for t in dataset.events["time_ms"]]
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
    length = np.array([len(w.prefix) // 40 for w in items])
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

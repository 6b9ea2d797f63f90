"""What was read and what will be learned of it, in lines for a person."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from mfalcon.clock import now_ms
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_layers import ReachConfig
from mfalcon.train.dataset import Dataset
from mfalcon.train.leaks import leak_lines
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import labels
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split_name
from mfalcon.types import Ids

_SHOWN_ACTIONS = 8
_PARTS = (("training", TRAIN), ("validation", VALIDATION), ("test", TEST))


def read_lines(dataset: Dataset) -> Iterator[str]:
    """The data set: how much of what, from when to when, and what is odd about it."""
    events = dataset.events
    with_events = len(np.unique(events["item_id"]))
    first, last = int(events["time_ms"][0]), int(events["time_ms"][-1])
    unit = f" (times were read as {dataset.reading.time_unit})" if dataset.reading else ""
    days = (last - first) / 86_400_000
    yield f"read: {len(events):,} events of {len(dataset.user_ids):,} users on {with_events:,} items"
    yield f"  period: {moment(first)} to {moment(last)}, {days:,.1f} days{unit}"
    lengths = np.bincount(dataset.user, minlength=len(dataset.user_ids))
    least, middle, most = int(lengths.min()), float(np.median(lengths)), int(lengths.max())
    yield f"  events of a user: {least:,} at least, {middle:g} in the middle, {most:,} at most"
    yield f"  actions: {actions_line(dataset)}"
    value = events["value"]
    if np.any(value):
        yield f"  value: {value.min():g} to {value.max():g}, {np.median(value):g} in the middle"
    if dataset.side_features:
        kinds = ", ".join(f"{f.name} ({len(f.vocabulary):,} {_plural(f.kind)})" for f in dataset.side_features)
        yield f"  side features of items: {kinds}"
    if dataset.dense:
        yield f"  features of events: {', '.join(dataset.dense)}"
    if (without := len(dataset.items.item_id) - with_events) > 0:
        yield f"  items without an event: {without:,}; what they are shown as is all that is learned of them"
    yield from _odd_lines(dataset)


def _odd_lines(dataset: Dataset) -> Iterator[str]:
    if duplicates := num_duplicates(dataset):
        yield f"  duplicates: {duplicates:,} rows repeat another's user, item, time, action and value; each counts"
    if dataset.reading and dataset.reading.num_late:
        yield (
            f"  late rows: {dataset.reading.num_late:,} stand behind a later event of their user; all were put in order"
        )
    if future := int(np.count_nonzero(dataset.events["time_ms"] > now_ms())):
        yield f"  warning: {future:,} events are later than now, {moment(now_ms())}"


def learn_lines(
    dataset: Dataset, config: RankerConfig, training: TrainConfig, parts: NDArray[np.int8], num_parameters: int
) -> Iterator[str]:
    """The split, every task with its rates, the blend, and the model. parts: of each event, [num_events]."""
    sizes = []
    for name, part in _PARTS:
        times = dataset.events["time_ms"][parts == part]
        when = f" ({moment(int(times[0]))} to {moment(int(times[-1]))})" if len(times) else ""
        sizes.append(f"{len(times):,} {name}{when}")
    yield f"split {split_name(dataset, training.split)}: {', '.join(sizes)}"
    yield from (f"  {line}" for line in leak_lines(dataset))
    new = len(np.setdiff1d(dataset.user[parts == TEST], dataset.user[parts == TRAIN]))
    yield f"  of {len(np.unique(dataset.user[parts == TEST])):,} users who test, {new:,} have no training event"
    yield "learns:"
    truth = labels(dataset, dataset.tasks)
    for which, task in enumerate(dataset.tasks):
        yield f"  {task.name}: {rule_of(task)}; {_rates(task, truth[:, which], parts)}"
    weights = " + ".join(f"{weight:g} x {name}" for name, weight in config.blend.items() if weight)
    yield f"ranks by: {weights or 'nothing'}; [[tasks]] and [blend] in a file of --config change that"
    size = f", {config.num_layers} layers of width {config.layer.dim}" if config.layer else ""
    sees = "; ".join((f"it sees the last {config.max_history:,} events", *reach_parts(config.reach or ())))
    yield f"model: {config.architecture}{size}, {num_parameters:,} parameters; {sees}"
    first = next((f", by the AUC of {task.name}" for task in dataset.tasks if task.kind == "binary"), "")
    yield f"trains: up to {training.epochs} epochs, of which the best is kept{first}; ends {training.patience} after it"


def reach_parts(reach_of_layers: Sequence[ReachConfig | None]) -> Iterator[str]:
    """What layers see where it is a part of a history, layers of one reach together."""
    alike = dict[ReachConfig, list[int]]()
    for number, reach in enumerate(reach_of_layers, 1):
        if reach is not None:
            alike.setdefault(reach, []).append(number)
    for reach, numbers in alike.items():
        who = f"layer{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
        first = f", and the first {reach.first:,}" if reach.first else ""
        yield f"{who}: {reach.tokens:,} tokens back, for a candidate {reach.of_targets:,}{first}"


def rule_of(task: Task) -> str:
    """When the label of a task is 1, or what it is."""
    if task.kind == "regression":
        return "the value"
    if task.any_action:
        return f"1 if the action is {' or '.join(task.any_action)}"
    return f"1 if the value is at least {task.value_at_least:g}"


def action_counts(dataset: Dataset) -> dict[str, int]:
    """How many events have each action, the most frequent first."""
    bits = dataset.events["actions"]
    counts = {name: int(np.count_nonzero(bits >> np.uint32(bit) & 1)) for bit, name in enumerate(dataset.actions)}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def num_duplicates(dataset: Dataset) -> int:
    """Rows that repeat an earlier one in every column that the model reads."""
    events, user = dataset.events, dataset.user
    same = (np.diff(events["time_ms"]) == 0) & (np.diff(user) == 0) & (np.diff(events["item_id"]) == 0)
    if not same.any():
        return 0
    runs: Ids = np.concatenate([[0], np.cumsum(~same)])
    in_run = np.zeros(len(events), dtype=np.bool_)
    in_run[:-1] |= same
    in_run[1:] |= same
    rows = np.stack([runs[in_run], events["actions"][in_run], events["value"][in_run]], axis=1).astype(np.float64)
    return len(rows) - len(np.unique(rows, axis=0))


def moment(time_ms: int) -> str:
    """To the minute, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def actions_line(dataset: Dataset) -> str:
    """How many events have each action, and their share; the most frequent first."""
    counts = action_counts(dataset)
    shown = [f"{name} {count:,} ({count / len(dataset.events):.1%})" for name, count in counts.items()]
    more = len(shown) - _SHOWN_ACTIONS
    return ", ".join(shown[:_SHOWN_ACTIONS]) + (f", and {more} more" if more > 0 else "")


def _rates(task: Task, truth: NDArray[np.float32], parts: NDArray[np.int8]) -> str:
    """Means of the labels, part by part."""
    means = [(name, float(truth[parts == part].mean())) for name, part in _PARTS if np.any(parts == part)]
    if task.kind == "binary":
        return "is so for " + ", ".join(f"{mean:.2%} of {name}" for name, mean in means)
    return "its mean is " + ", ".join(f"{mean:.3g} in {name}" for name, mean in means)


def _plural(kind: str) -> str:
    return "tags" if kind == "tags" else "values"

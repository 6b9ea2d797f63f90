"""What a split of a user's own lets training see of what it is tested by: said, and the user's to judge."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mfalcon.train.dataset import Dataset
from mfalcon.train.splits import TEST, TRAIN, VALIDATION

_PARTS = (("validation", VALIDATION), ("test", TEST))


def leak_lines(dataset: Dataset) -> Iterator[str]:
    """A line for each kind of leak; none where the split is not the file's own. Events of one user, item, time and
    action in two parts, events before a training event of the same user, and training events later than the first one
    of the other part.
    """
    parts, times = dataset.parts, dataset.events["time_ms"]
    if parts is None:
        return
    is_train = parts == TRAIN
    last = np.zeros(len(dataset.user_ids), dtype=np.int64)
    np.maximum.at(last, dataset.user[is_train], times[is_train])
    for name, part in _PARTS:
        chosen = parts == part
        num = int(np.count_nonzero(chosen))
        if not num:
            continue
        if early := int(np.count_nonzero(times[chosen] < last[dataset.user[chosen]])):
            yield (
                f"warning: {early:,} of {num:,} {name} events are before a training event of the same user, which has "
                "seen their future"
            )
        if same := _num_same(dataset, is_train, chosen):
            yield f"warning: {same:,} different {name} events are training events too, by user, item, time and action"
        if later := int(np.count_nonzero(times[is_train] > times[chosen][0])):
            share = later / np.count_nonzero(is_train)
            yield f"{share:.1%} of the training events are later than the first {name} event: others' future is learned"


def _num_same(dataset: Dataset, one: NDArray[np.bool_], other: NDArray[np.bool_]) -> int:
    """How many different events are in both."""
    times = dataset.events["time_ms"]
    at_both = np.isin(times, np.intersect1d(times[one], times[other]))  # few, where nothing is wrong

    def rows(chosen: NDArray[np.bool_]) -> set[tuple[int, ...]]:
        events = dataset.events[chosen & at_both]
        columns = dataset.user[chosen & at_both], events["item_id"], events["actions"], events["time_ms"]
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len(rows(one) & rows(other))

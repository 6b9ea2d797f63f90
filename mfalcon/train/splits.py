"""Which events are for training, validation and test: by global time (A) or within every user (B)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mfalcon.train.dataset import Dataset

TRAIN, VALIDATION, TEST, UNUSED = 0, 1, 2, 3

Split = Literal["A", "B"]


def split_a(dataset: Dataset) -> NDArray[np.int8]:
    """Global time, 80/10/10: the first 80% of all events train, the last 10% test.

    [num_events] of TRAIN, VALIDATION or TEST. Test users are mostly new: what the model knows of them is their history.
    """
    num_events = len(dataset.events)
    part = np.full(num_events, TRAIN, dtype=np.int8)
    part[int(0.8 * num_events) :] = VALIDATION
    part[int(0.9 * num_events) :] = TEST
    return part


def split_b(dataset: Dataset) -> NDArray[np.int8]:
    """Every user's own events, 80/10/10 in order: the last tenth of each history tests.

    [num_events] of TRAIN, VALIDATION or TEST. Every user trains, but training sees events later than some test events.
    """
    by_user = np.argsort(dataset.user, kind="stable")
    num_of_user = np.bincount(dataset.user, minlength=len(dataset.user_ids))
    start_of_user = np.cumsum(num_of_user) - num_of_user
    rank = np.empty(len(by_user), dtype=np.int64)
    rank[by_user] = np.arange(len(by_user)) - start_of_user[dataset.user[by_user]]
    history_len = num_of_user[dataset.user]
    part = np.full(len(by_user), TRAIN, dtype=np.int8)
    part[rank >= history_len * 0.8] = VALIDATION
    part[rank >= history_len * 0.9] = TEST
    return part


def split(dataset: Dataset, kind: Split) -> NDArray[np.int8]:
    """[num_events] part of each event: as its file says, or else under split A or B."""
    if dataset.parts is not None:
        return dataset.parts
    return split_a(dataset) if kind == "A" else split_b(dataset)


def split_name(dataset: Dataset, kind: Split) -> str:
    """What `split` splits by: A, B, or "own", which the file says."""
    return kind if dataset.parts is None else "own"


def thinned(parts: NDArray[np.int8], dataset: Dataset, share: float) -> NDArray[np.int8]:
    """The parts where only a share of the users who train still do, at least one; the events of the rest are UNUSED.

    Who that is depends on the data set alone, and the users of a smaller share are among those of a larger.
    """
    users = np.random.default_rng(0).permutation(np.unique(dataset.user[parts == TRAIN]))
    kept = users[: max(1, round(share * len(users)))]
    return np.where((parts == TRAIN) & ~np.isin(dataset.user, kept), np.int8(UNUSED), parts)

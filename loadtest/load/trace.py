"""A seeded trace of users who come, look, act and come back: what a driver sends, in logical time.

Who comes when is `loadtest/load/visit_times.py`. A user's first visit begins with the history that was there before the
trace; every visit is one Rank; events are appended between a visit and the next; now and then a user is deleted, or one
event of the history is edited. The steps of a user are a function of the seed and the user alone.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from loadtest.load.visit_times import cycle_s, visit_times
from mfalcon.types import EVENT_DTYPE, Events, Ids

START_MS = 1_700_000_000_000
"""When second 0 of every trace is; the histories of before end there."""

_MEAN_EVENT_GAP_MS = 3_600_000

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What to draw. The trace ends after `num_requests` visits or `seconds`, whichever comes first.

    zipf_exponent: of the visits over users. Items are 1 to `num_items`, actions one bit of `num_actions`.
    max_history: the longest history of before, its length log-uniform from `min_history`.
    append_share: of the visits that are followed by an append of 1 to `max_append` events.
    delete_share, edit_share: of the visits that are followed by a delete or by an edit.
    """

    num_users: int = 200
    num_requests: int = 1_000
    seconds: float = math.inf
    zipf_exponent: float = 1.0
    num_items: int = 10_000
    num_actions: int = 1
    num_candidates: int = 50
    min_history: int = 16
    max_history: int = 512
    append_share: float = 0.6
    max_append: int = 10
    delete_share: float = 0.003
    edit_share: float = 0.003
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """Rank these candidates ([num_candidates] item ids, read-only) for a user."""

    time_s: float
    user: int
    candidates: Ids


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """Append these events (read-only) to a user's history, which has `expected_len` of them."""

    time_s: float
    user: int
    events: Events
    expected_len: int


@dataclass(frozen=True, slots=True)
class Delete:
    """Forget a user; the history is empty afterwards."""

    time_s: float
    user: int


@dataclass(frozen=True, slots=True)
class Edit:
    """Change the item of one event of a user's history, which is not empty.

    On the wire that is a delete and an append of `edited(history, step)` with `expected_len` 0.
    """

    time_s: float
    user: int
    position: int
    item_id: int


Step = Rank | Append | Delete | Edit


def trace(options: TraceOptions, item_ids: Ids | None = None) -> Iterator[Step]:
    """The steps of all users in the order of time; over these items, if they are not 1 to `num_items`."""
    items = np.arange(1, options.num_items + 1) if item_ids is None else item_ids
    starts = _first_visits(options)
    # A user's generator is made when the user first comes: most users of a large population never do.
    waiting = [(float(time_s), user) for user, time_s in enumerate(starts)]
    heapq.heapify(waiting)
    steps: dict[int, Iterator[Step]] = {}
    following: dict[int, Step] = {}
    num_requests = 0
    while waiting and num_requests < options.num_requests:
        time_s, user = heapq.heappop(waiting)
        if time_s > options.seconds:
            return
        if user not in steps:
            steps[user] = _user_steps(options, items, user, float(starts[user]))
            following[user] = next(steps[user])
        step = following[user]
        num_requests += isinstance(step, Rank)
        yield step
        following[user] = next(steps[user])
        heapq.heappush(waiting, (following[user].time_s, user))


def edited(history: Events, step: Edit) -> Events:
    """A copy of the history with the event at the step's position changed; the history must reach that far."""
    copy = history.copy()
    copy["item_id"][step.position] = step.item_id
    copy.flags.writeable = False
    return copy


def time_ms(time_s: float) -> int:
    """A step's time as requests and events carry it."""
    return START_MS + round(time_s * 1000)


def _first_visits(options: TraceOptions) -> NDArray[np.float64]:
    """[num_users] seconds; anywhere in a user's mean cycle, as if the users had come and gone for long."""
    cycles = [cycle_s(user + 1, options.zipf_exponent) for user in range(options.num_users)]
    return np.random.default_rng(options.seed).uniform(0, cycles)


def _user_steps(options: TraceOptions, items: Ids, user: int, start_s: float) -> Iterator[Step]:
    rng = np.random.default_rng((options.seed, user))
    before = _history_of_before(rng, options, items)
    yield Append(start_s, user, before, 0)
    size = len(before)
    times = visit_times(rng, user + 1, options.zipf_exponent, start_s)
    visit_s = next(times)
    while True:
        yield Rank(visit_s, user, _frozen(rng.choice(items, options.num_candidates)))
        next_s = next(times)
        # The middle of the gap: the user has acted, and the next visit has not begun.
        between_s = visit_s + (next_s - visit_s) / 2
        if rng.random() < options.append_share:
            events = _events(rng, options, items, int(rng.integers(1, options.max_append + 1)))
            events["time_ms"] = time_ms(between_s)
            yield Append(between_s, user, _frozen(events), size)
            size += len(events)
        change = rng.random()
        if change < options.delete_share:
            yield Delete(between_s, user)
            size = 0
        elif change < options.delete_share + options.edit_share and size > 0:
            yield Edit(between_s, user, int(rng.integers(size)), int(rng.choice(items)))
        visit_s = next_s


def _history_of_before(rng: np.random.Generator, options: TraceOptions, items: Ids) -> Events:
    low, high = math.log(options.min_history), math.log(options.max_history)
    events = _events(rng, options, items, round(math.exp(rng.uniform(low, high))))
    gaps = rng.exponential(_MEAN_EVENT_GAP_MS, len(events)).astype(np.int64)
    events["time_ms"] = START_MS - np.cumsum(gaps)[::-1]
    return _frozen(events)


def _events(rng: np.random.Generator, options: TraceOptions, items: Ids, count: int) -> Events:
    events = np.zeros(count, dtype=EVENT_DTYPE)
    events["item_id"] = rng.choice(items, count)
    events["actions"] = 1 << rng.integers(0, options.num_actions, count)
    events["value"] = rng.integers(1, 6, count)
    return events


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array

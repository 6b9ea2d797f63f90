"""A window of a stream: the events between two places of it, as appends whose names say which they are.

An append is known by the stream, the place where its window begins and its user, so the same window that is sent again
after a crash is made of the same appends under the same names, and the server writes each of them once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mfalcon.ingest.lines import Row
from mfalcon.types import EVENT_DTYPE, Append, Events, UserAppend

_STREAM_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Window:
    """Events from one place of a stream to another, in their order.

    users: [num_users]. user_of: [num_events] the position of each event's user. events: of EVENT_DTYPE. places: where
    each event came from, a line say. begin, end: places of the stream.
    """

    begin: int
    end: int
    users: tuple[str, ...]
    user_of: NDArray[np.int64]
    events: Events
    places: NDArray[np.int64]

    @classmethod
    def of(cls, begin: int, end: int, rows: Sequence[Row], places: Sequence[int]) -> "Window":
        """Of these events."""
        users: dict[str, int] = {}
        user_of = np.array([users.setdefault(row[0], len(users)) for row in rows], dtype=np.int64)
        events = np.array([row[1:] for row in rows], dtype=EVENT_DTYPE)
        return cls(begin, end, tuple(users), user_of, events, np.array(places, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Part:
    """An append of a window. places: where its events came from."""

    append: UserAppend
    places: NDArray[np.int64]


def stream_id(name: str) -> str:
    """What stands for a stream in the names of its appends."""
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=_STREAM_DIGITS // 2).hexdigest()


def parts_of(window: Window, stream: str, late_events: str, most_events: int) -> list[Part]:
    """The appends of a window, each of at most so many events, the ones of a user in their order. stream: of
    `stream_id`.
    """
    order = np.argsort(window.user_of, kind="stable")
    ends = np.cumsum(np.bincount(window.user_of, minlength=len(window.users)))
    parts = []
    for user_id, end, begin in zip(window.users, ends.tolist(), [0, *ends.tolist()], strict=False):
        for number, first in enumerate(range(begin, end, most_events)):
            chosen = order[first : min(end, first + most_events)]
            name = f"{stream}:{window.begin}" + (f":{number}" if number else "")
            append = Append(window.events[chosen], append_id=name, late_events=late_events)
            parts.append(Part(UserAppend(user_id, append), window.places[chosen]))
    return parts


def one_by_one(part: Part) -> list[Part]:
    """An append of several events as one of each, under names of their own."""
    append = part.append.append
    return [
        Part(
            UserAppend(
                part.append.user_id,
                Append(
                    append.events[at : at + 1], append_id=f"{append.append_id}/{at}", late_events=append.late_events
                ),
            ),
            part.places[at : at + 1],
        )
        for at in range(len(append.events))
    ]

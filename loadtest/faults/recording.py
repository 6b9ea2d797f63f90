"""Operations on users' histories as their callers saw them, and what an append must make of a history."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np

from mfalcon.history.history import History, no_history
from mfalcon.types import Events, no_events


@dataclass(frozen=True, slots=True)
class Operation:
    """One call, from `began` to `ended` (infinite if it was never answered) on one clock.

    outcome: "refused" means that nothing was written; "unknown" that it may have been. events: of an append those to be
    stored, whose item ids no other append has; of a read the whole history. length, version: the state that the answer
    tells, version b"" if it tells none. append_id: the same for every attempt at one append. late: what is to become of
    events older than the newest. was_written: an earlier attempt had written them. stale: the answer may be outdated.
    """

    kind: Literal["append", "read", "delete"]
    user: str
    began: float
    ended: float = math.inf
    outcome: Literal["ok", "refused", "unknown"] = "ok"
    events: Events = field(default_factory=no_events)
    length: int = 0
    version: bytes = b""
    expected_len: int | None = None
    expected_version: bytes | None = None
    append_id: str = ""
    late: Literal["reject", "clamp", "insert"] = "reject"
    was_written: bool = False
    stale: bool = False

    @property
    def items(self) -> set[int]:
        """What names its events."""
        return set(self.events["item_id"].tolist())

    @property
    def tells(self) -> bool:
        """Whether something can be learned from it: not from a refusal without a state, nor from a read that failed."""
        return self.outcome == "ok" or bool(self.version) or (self.outcome == "unknown" and self.kind != "read")

    def may_follow(self, history: History) -> bool:
        """Whether the precondition of an append holds for this history."""
        return self.expected_len in (None, len(history)) and self.expected_version in (None, history.version)


def placed(history: History, events: Events, late: str) -> History:
    """The history after an append, as the promise says; an empty one if a late event must be refused."""
    merged = np.concatenate([history.events, events])
    if late == "clamp":
        merged["time_ms"] = np.maximum.accumulate(merged["time_ms"])
    order = np.argsort(merged["time_ms"], kind="stable")
    if np.array_equal(order, np.arange(len(merged))):
        return history.extended(merged[len(history) :])
    return no_history(history.user_id).extended(merged[order if late == "insert" else order[:0]])


def includes(longer: History, shorter: History) -> bool:
    """Whether a history has all events of another one, in their order, and more."""
    kept = longer.events[np.isin(longer.events["item_id"], shorter.events["item_id"])]
    return len(shorter) < len(longer) and np.array_equal(kept, shorter.events)


def states_of(
    told: Operation, states: Iterable[History], unknown: Sequence[Operation], most: int = 2
) -> tuple[History, History] | None:
    """The history that an append found and the one that its answer tells: the same, if it was refused.

    states: those that are known. unknown: appends of which `most` may have been written between one of them and this.
    None if no history of this version can be made.
    """
    events, near = told.events if told.outcome == "ok" else no_events(), list(states)
    for state in near:
        if (
            len(state) + len(events) == told.length
            and (after := placed(state, events, told.late)).version == told.version
        ):
            return state, after
    furthest = told.length - len(events) - most * max((len(o.events) for o in unknown), default=0)
    grown = [
        placed(state, o.events, o.late)
        for state, o in product(near, unknown if most else ())
        if furthest <= len(state) < told.length and not np.isin(o.events["item_id"], state.events["item_id"]).any()
    ]
    return states_of(told, grown, unknown, most - 1) if grown else None

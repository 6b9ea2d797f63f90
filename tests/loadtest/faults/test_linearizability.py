"""The judge of recorded appends passes what a right log can give, and finds each kind of violation that is planted."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from loadtest.faults.linearizability import violations
from loadtest.faults.recording import Operation, placed
from mfalcon.history.history import History, no_history
from mfalcon.types import EVENT_DTYPE, Events, no_events

USER = "u"


def event(item: int, time_ms: int | None = None) -> Events:
    """One event that its item id names."""
    return np.array([(item, 1, 0.0, time_ms or 1_000)], dtype=EVENT_DTYPE)


def history(*items: int) -> History:
    """A history of such events."""
    return no_history(USER).extended(np.concatenate([no_events(), *(event(item) for item in items)]))


def append(at: float, *before: int, item: int, **more: object) -> Operation:
    """An append to these events, which takes no time and is acknowledged."""
    after = history(*before, item)
    told = Operation("append", USER, at, at + 0.5, events=event(item), length=len(after), version=after.version)
    return replace(told, **more)  # type: ignore[arg-type]


def refused(at: float, *found: int, item: int, **more: object) -> Operation:
    """An append that was told that the history has other events than it expects."""
    state = history(*found)
    return append(at, item=item, outcome="refused", length=len(state), version=state.version, **more)


def unknown(at: float, item: int, **more: object) -> Operation:
    """An append that nothing was heard of."""
    return append(at, item=item, outcome="unknown", ended=math.inf, length=0, version=b"", **more)


def read(at: float, *items: int, **more: object) -> Operation:
    """A read of the whole history."""
    found = history(*items)
    told = Operation("read", USER, at, at + 0.5, events=found.events, length=len(items), version=found.version)
    return replace(told, **more)  # type: ignore[arg-type]


def delete(at: float, **more: object) -> Operation:
    """A deletion."""
    return replace(Operation("delete", USER, at, at + 0.5), **more)  # type: ignore[arg-type]


LATE = event(9, time_ms=1)
"""Older than all others."""
FIRST = no_history(USER).extended(np.concatenate([LATE, event(1)]))

RIGHT: dict[str, Sequence[Operation]] = {
    "nothing": [],
    "in order": [append(1, item=1), append(2, 1, item=2), read(3, 1, 2)],
    "read while it is written": [append(1, item=1, ended=9), read(2), read(3, 1)],
    "the clock does not say which was first": [
        append(1, 2, item=1, ended=9),
        append(2, item=2, ended=9),
        read(10, 2, 1),
    ],
    "unknown and written": [unknown(1, item=1), append(2, 1, item=2), read(3, 1, 2)],
    "two unknown and written, never read": [unknown(1, item=1), unknown(1, item=2), append(3, 2, 1, item=3)],
    "unknown and not written": [unknown(1, item=1), append(2, item=2), read(3, 2)],
    "unknown, read late": [unknown(1, item=1), read(2), read(9, 1)],
    "a retry finds it": [
        unknown(1, item=1, append_id="a"),
        append(2, 1, item=2),
        append(3, item=1, append_id="a", was_written=True),
    ],
    "a retry writes it": [
        unknown(1, item=1, append_id="a"),
        append(2, item=2),
        append(3, 2, item=1, append_id="a"),
        read(4, 2, 1),
    ],
    "refused and not written": [append(1, item=1), refused(2, 1, item=2, expected_len=0), read(3, 1)],
    "the precondition holds": [append(1, item=1), append(2, 1, item=2, expected_version=history(1).version)],
    "a stale answer says so": [append(1, item=1), read(2, stale=True), read(3, 1)],
    "deleted": [append(1, item=1), delete(2), read(3), append(4, item=2), read(5, 2)],
    "deleted while it is read": [append(1, item=1), delete(2, ended=9), read(3, 1), read(4), append(5, item=2)],
    "perhaps deleted": [append(1, item=1), delete(2, outcome="unknown", ended=math.inf), read(3, 1), read(8)],
    "a late event in its place": [
        append(1, item=1),
        append(2, item=9, events=LATE, late="insert", length=2, version=FIRST.version),
        read(3, 1, events=FIRST.events, length=2, version=FIRST.version),
    ],
}

WRONG: dict[str, tuple[str, Sequence[Operation]]] = {
    "an acknowledged event is not read": ("saw 1 events", [append(1, item=1), append(2, 1, item=2), read(3, 1)]),
    "a whole history is gone": ("saw 0 events", [append(1, item=1), read(2)]),
    "two were acknowledged in the same place": (
        "states were lost",
        [append(1, item=1), append(2, 1, item=2), append(3, 1, item=3)],
    ),
    "two orders were read": (
        "states were lost",
        [append(1, item=1), append(2, 1, item=2), read(3, 1, 2), read(4, 2, 1)],
    ),
    "doubled": ("doubled", [append(1, item=1), read(2, 1, 1)]),
    "an unknown append is there twice": ("doubled", [unknown(1, item=1), append(2, 1, item=2), read(3, 1, 2, 1)]),
    "a part of an append": (
        "parts of an append",
        [unknown(1, item=1, events=np.concatenate([event(1), event(2)])), read(2, 1)],
    ),
    "nobody sent it": ("nobody sent", [append(1, item=1), read(2, 1, 7)]),
    "refused, and read": ("nothing was", [refused(1, item=1, expected_len=5), read(2, 1)]),
    "refused, and the retry finds it": (
        "nothing was",
        [refused(1, item=1, append_id="a", expected_len=5), append(2, item=1, append_id="a", was_written=True)],
    ),
    "a retry tells another place": (
        "written twice",
        [
            append(1, item=1, append_id="a"),
            append(2, 1, item=2),
            append(3, 2, item=1, append_id="a", was_written=True),
        ],
    ),
    "a retry wrote again": (
        "written twice",
        [append(1, item=1, append_id="a"), append(2, 1, item=1, append_id="a"), read(3, 1, 1)],
    ),
    "both attempts say they wrote": (
        "written twice",
        [append(1, item=1, append_id="a"), append(2, item=1, append_id="a")],
    ),
    "a version of something else": ("follows from no other", [append(1, item=1, version=history(2).version)]),
    "a refusal tells a version of nothing": (
        "follows from no other",
        [append(1, item=1), refused(2, 2, item=3, expected_len=5)],
    ),
    "a read tells another version": ("do not have", [append(1, item=1), read(2, 1, version=history(2).version)]),
    "a read tells another length": ("do not have", [append(1, item=1), read(2, 1, length=2)]),
    "taken at another length": ("precondition", [append(1, item=1), append(2, 1, item=2, expected_len=0)]),
    "taken at another version": (
        "precondition",
        [append(1, item=1), append(2, 1, item=2, expected_version=history(3).version)],
    ),
    "refused at the length it expects": ("precondition", [append(1, item=1), refused(2, 1, item=2, expected_len=1)]),
    "an old state that does not say so": ("saw 0 events", [append(1, item=1), read(2), read(3, 1)]),
    "a refusal tells an old state": (
        "saw 1 events",
        [append(1, item=1), append(2, 1, item=2), refused(3, 1, item=3, expected_len=5), read(4, 1, 2)],
    ),
    "reads go back": (
        "saw 1 events",
        [unknown(1, item=1), unknown(1, item=2), read(3, 1, 2), read(4, 1)],
    ),
    "read before it was sent": ("saw 0.5 events", [read(1, 1), append(2, item=1)]),
    "written in an order that the clock forbids": (
        "saw 0.5 events",
        [append(1, 2, item=1), append(2, item=2), read(3, 2, 1)],
    ),
    "it outlived its deletion": ("outlived", [append(1, item=1), delete(2), read(3, 1)]),
    "nobody deleted it": ("states were lost", [append(1, item=1), append(2, item=2), read(3, 2)]),
    "deleted before it was written": ("saw 0 events", [delete(1), append(2, item=1), read(3)]),
    "a late event at the end": (
        "follows from no other",
        [
            append(1, item=1),
            append(2, 1, item=9, events=LATE, late="insert", version=history(1).extended(LATE).version),
        ],
    ),
    "a late event that was not refused": (
        "follows from no other",
        [append(1, item=1), append(2, 1, item=9, events=LATE, version=history(1).extended(LATE).version)],
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_a_right_log_gives_passes(name: str) -> None:
    assert violations(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_violation_is_found(name: str) -> None:
    what, recorded = WRONG[name]
    assert any(what in violation for violation in violations(recorded)), violations(recorded)


def test_one_user_hides_nothing_of_another() -> None:
    wrong = [replace(operation, user="v") for operation in WRONG["nobody sent it"][1]]
    found = violations([*RIGHT["in order"], *wrong])
    assert found and all(violation.startswith("v: ") for violation in found)


@pytest.mark.parametrize(
    "after",
    [[read(8, 1)], [read(8)], [append(8, 1, item=3), read(9, 1, 3)], [read(8, 1), append(9, 1, item=3)]],
    ids=["a shorter one", "none", "another one", "a shorter one and then another"],
)
def test_events_may_be_lost_only_when_it_is_allowed(after: Sequence[Operation]) -> None:
    recorded = [append(1, item=1), append(2, 1, item=2), *after]
    assert violations(recorded)
    assert not violations(recorded, may_lose=[(4, 6)])
    assert violations(recorded, may_lose=[(20, 21)])


@given(st.integers(0, 2**32), st.sampled_from(["reject", "clamp", "insert"]))
@settings(max_examples=60, deadline=None, phases=[Phase.generate])
def test_every_recording_of_a_right_log_passes(seed: int, late: str) -> None:
    rng = random.Random(seed)
    recorded = Simulation(rng, late).run(60)
    rng.shuffle(recorded)
    assert violations(recorded) == []


@given(st.integers(0, 2**32), st.sampled_from(["lose", "double", "swap"]))
@settings(max_examples=60, deadline=None, phases=[Phase.generate])
def test_a_log_that_breaks_its_promise_once_is_found(seed: int, bug: str) -> None:
    recorded = Simulation(random.Random(seed), "reject", bug, delete_share=0.0).run(40)
    assert violations(recorded)


class Simulation:
    """Clients whose calls overlap, on a log that is right but for one `bug`. Calls take effect at 1, 2, 3, ..."""

    def __init__(self, rng: random.Random, late: str, bug: str = "", delete_share: float = 0.05) -> None:
        self.rng = rng
        self.late = late
        self.bug = bug
        self.delete_share = delete_share
        self.state = no_history(USER)
        self.written: dict[str, History] = {}
        self.recorded: list[Operation] = []
        self.unheard = 0
        """Appends that were written since the last one of which its client heard: what is told must be derivable."""

    def run(self, calls: int) -> list[Operation]:
        """What the clients saw; a read is the last thing."""
        broken_at = calls // 2 if self.bug else -1
        for now in range(1, calls):
            began, ended = now - self.rng.uniform(0, 4), now + self.rng.uniform(0, 4)
            kind = self.rng.choices(
                ["append", "retry", "refused", "read", "delete"], [0.6, 0.1, 0.1, 0.2, self.delete_share]
            )[0]
            if now == broken_at:
                self._break(now)
            elif kind == "append":
                self._append(now, began, ended)
            elif kind == "retry":
                self._retry(began, ended)
            elif kind == "refused":
                told = self._told("append", began, ended, event(now))
                self.recorded.append(replace(told, outcome="refused", expected_len=len(self.state) + 1))
            elif kind == "read":
                self.recorded.append(self._told("read", began, ended, self.state.events))
            else:
                self._delete(began, ended)
        self.recorded.append(self._told("read", calls + 5, calls + 6, self.state.events))
        return self.recorded

    def _told(self, kind: str, began: float, ended: float, events: Events) -> Operation:
        told = Operation("read", USER, began, ended, "ok", events, len(self.state), self.state.version)
        return replace(told, kind=kind, late=self.late)  # type: ignore[arg-type]

    def _append(self, now: int, began: float, ended: float) -> None:
        events = np.concatenate([event(1_000 * now + number) for number in range(self.rng.randint(1, 3))])
        first = int(self.state.events["time_ms"][-1]) if len(self.state.events) else 1_000
        shift = 0 if self.late == "reject" else self.rng.randint(-3, 0)
        events["time_ms"] = max(1, first + shift) + np.arange(len(events))
        known = self.state.version if self.rng.random() < 0.3 else None
        happens, told = self.rng.random() < 0.9, self.unheard == 2 or self.rng.random() < 0.7
        if happens:
            self.unheard = 0 if told else self.unheard + 1
            self.state = placed(self.state, events, self.late)
            self.written[str(now)] = self.state
        operation = replace(self._told("append", began, ended, events), append_id=str(now), expected_version=known)
        if not happens or not told:
            operation = replace(operation, outcome="unknown", ended=math.inf, length=0, version=b"")
        self.recorded.append(operation)

    def _retry(self, began: float, ended: float) -> None:
        """Ask again what became of an append of this life, which began before."""
        written = [o for o in self.recorded if o.append_id in self.written and o.kind == "append" and o.began < began]
        if written:
            first = self.rng.choice(written)
            then = self.written[first.append_id]
            told = {"outcome": "ok", "length": len(then), "version": then.version, "was_written": True}
            self.recorded.append(replace(first, began=began, ended=ended, **told))  # type: ignore[arg-type]

    def _delete(self, began: float, ended: float) -> None:
        happens, told = self.rng.random() < 0.9, self.rng.random() < 0.7
        if happens:
            self.state = no_history(USER)
            self.written.clear()
        known = happens and told
        told_as = Operation("delete", USER, began, ended if known else math.inf, "ok" if known else "unknown")
        self.recorded.append(told_as)

    def _break(self, now: int) -> None:
        """Two appends are acknowledged, one after the other, and and the log keeps one, doubles one or swaps them."""
        begun, pair = self.state, [event(1_000 * now), event(1_000 * now + 1)]
        last = int(begun.events["time_ms"][-1]) if len(begun.events) else 1_000
        for number, events in enumerate(pair):
            events["time_ms"] = last
            self.state = self.state.extended(events)
            self.recorded.append(self._told("append", now + number / 4, now + number / 4 + 0.1, events))
        kept = {"lose": pair[:1], "double": [*pair, pair[0]], "swap": pair[::-1]}[self.bug]
        self.state = begun.extended(np.concatenate(kept))

"""A history and its chained hash against the definition; the embedded log against a plain list of events per user."""

import hashlib
from collections.abc import Coroutine
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mfalcon.errors import HistoryMismatch, InvalidInput
from mfalcon.history.history import History, Retention, check_order, no_history
from mfalcon.history.local_log import LocalLog
from mfalcon.types import EVENT_DTYPE, Append, Events, no_events
from tests.small import random_events

T = TypeVar("T")
USERS = st.sampled_from(["ann", "bob", "ann ", "ünï"])
RETENTION = Retention(max_events=70, slack=32)


def link_from_scratch(user_id: str, events: Events) -> bytes:
    """link(0) = H(user), link(n) = H(link(b) + events[b:n]) with b the last multiple of 32 before n, by hand."""
    link = hashlib.blake2b(user_id.encode(), digest_size=16, person=b"mfalcon.user").digest()
    for start in range(0, len(events), 32):
        link = hashlib.blake2b(link + events[start : start + 32].tobytes(), digest_size=16).digest()
    return link


def assert_is(history: History, user_id: str, events: Events) -> None:
    """The history is these events, whatever was trimmed of them."""
    assert history.user_id == user_id
    assert len(history) == len(events)
    assert history.events.dtype == EVENT_DTYPE
    assert history.base % 32 == 0
    assert history.since(history.base).tobytes() == events[history.base :].tobytes()
    for length in {history.base, *range(history.base, len(events), 13), len(events)}:
        assert history.link(length) == link_from_scratch(user_id, events[:length])


class Log(RuleBasedStateMachine):
    """Appends, deletes and snapshots of a few users."""

    def __init__(self) -> None:
        super().__init__()
        self.log = LocalLog(RETENTION)
        self.model: dict[str, Events] = {}
        self.snapshots: list[tuple[History, str, Events]] = []
        self.seed = 0

    def new_events(self, user_id: str, count: int) -> Events:
        self.seed += 1
        known = self.model.get(user_id, no_events())
        return random_events(count, self.seed, int(known["time_ms"][-1]) if len(known) else 0)

    def append_now(self, user_id: str, events: Events, expected_len: int | None) -> int:
        return done(self.log.append(user_id, Append(events, expected_len), None)).history_len

    @rule(user_id=USERS, count=st.sampled_from([1, 2, 15, 31, 32, 33, 100]), state_len=st.booleans())
    def append(self, user_id: str, count: int, state_len: bool) -> None:
        events, known = self.new_events(user_id, count), self.model.get(user_id, no_events())
        after = self.append_now(user_id, events, len(known) if state_len else None)
        self.model[user_id] = np.concatenate([known, events])
        assert after == len(self.model[user_id])
        events["item_id"] = -1  # the caller's array is the caller's again

    @rule(user_id=USERS, off_by=st.sampled_from([-1, 1, 100]))
    def append_at_the_wrong_length(self, user_id: str, off_by: int) -> None:
        size = len(self.model.get(user_id, no_events()))
        with pytest.raises(HistoryMismatch) as caught:
            self.append_now(user_id, self.new_events(user_id, 3), size + off_by)
        assert caught.value.history_len == size

    @rule(user_id=USERS)
    def append_the_past(self, user_id: str) -> None:
        known = self.model.get(user_id, no_events())
        if len(known) and known["time_ms"][-1] > 0:
            with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms"):
                self.append_now(user_id, np.array([(1, 1, 1, known["time_ms"][-1] - 1)], dtype=EVENT_DTYPE), None)

    @rule(user_id=USERS)
    def delete(self, user_id: str) -> None:
        ended = done(self.log.delete(user_id, None))
        assert (ended != b"") == (user_id in self.model)
        self.model.pop(user_id, None)

    @rule(user_id=USERS)
    def snapshot(self, user_id: str) -> None:
        known = self.model.get(user_id, no_events())
        self.snapshots.append((self.history(user_id), user_id, known.copy()))

    def history(self, user_id: str) -> History:
        return done(self.log.read(user_id, 0)).history

    @invariant()
    def snapshots_stay(self) -> None:
        for history, user_id, events in self.snapshots[-6:]:
            assert_is(history, user_id, events)

    @invariant()
    def the_newest_events_are_kept(self) -> None:
        for user_id, events in self.model.items():
            history = self.history(user_id)
            assert history.base <= max(0, len(events) - RETENTION.max_events)
            assert len(history.events) < 70 + 32 + 32

    def teardown(self) -> None:
        for history, user_id, events in self.snapshots:
            assert_is(history, user_id, events)
        for user_id, events in self.model.items():
            assert_is(self.history(user_id), user_id, events)
        generations = [self.history(user_id).generation for user_id in self.model]
        assert len(set(generations)) == len(generations)
        assert b"" not in generations


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=15, stateful_step_count=20)


def done(coroutine: Coroutine[None, None, T]) -> T:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waited")


@given(st.lists(st.integers(0, 70), max_size=6))
def test_any_way_of_growing_gives_the_same_chain(counts: list[int]) -> None:
    events, history = random_events(sum(counts)), no_history("ann", b"life")
    stop = 0
    for count in counts:
        history = history.extended(events[stop : stop + count])
        stop += count
    assert_is(history, "ann", events)
    for base in range(0, len(events) + 1, 32):
        trimmed = history.trimmed(base)
        assert trimmed.base == base
        assert_is(trimmed, "ann", events)
        assert_is(trimmed.extended(no_events()), "ann", events)


def test_every_bit_of_an_event_and_the_user_reach_the_link() -> None:
    events = random_events(40)
    whole = link_from_scratch("ann", events)
    for byte in range(EVENT_DTYPE.itemsize):
        content = bytearray(events.tobytes())
        content[EVENT_DTYPE.itemsize + byte] ^= 1
        edited = np.frombuffer(bytes(content), dtype=EVENT_DTYPE)
        assert no_history("ann").extended(edited).link(40) != whole
    assert no_history("bob").extended(events).link(40) != whole
    assert no_history("ann").extended(events[[1, 0, *range(2, 40)]]).link(40) != whole


def test_a_log_is_cut_once_per_slack() -> None:
    history, bases = no_history("ann", b"life"), []
    for length in range(1, 401):
        history = RETENTION.keep(history.extended(random_events(1, length, length)))
        bases.append(history.base)
    assert sorted(set(bases)) == [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320]
    assert sum(a != b for a, b in pairwise(bases)) == 10


def test_recent_events_older_than_the_log_are_refused() -> None:
    events = random_events(5)
    history = no_history("ann", b"life").extended(events)
    with pytest.raises(InvalidInput, match=r"recent_events\[0\]\.time_ms: got 0, must be at least"):
        check_order(history, np.zeros(1, dtype=EVENT_DTYPE), "recent_events")
    check_order(history, events[-1:], "recent_events")
    check_order(no_history("ann"), events, "recent_events")


async def test_a_refused_append_makes_no_user() -> None:
    log = LocalLog(RETENTION)
    with pytest.raises(HistoryMismatch):
        await log.append("ann", Append(random_events(1), 3), None)
    assert len(log) == 0

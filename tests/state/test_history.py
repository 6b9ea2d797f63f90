"""The event log against a plain list of events per user; its snapshots never change and its links are the chain."""

import hashlib
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mfalcon.errors import InvalidInput, LengthMismatch
from mfalcon.state.history import History, HistoryLog, check_order
from mfalcon.state.key import LINK_BYTES, chain, first_link
from mfalcon.types import EVENT_DTYPE, Events, no_events
from tests.small import random_events

USERS = st.sampled_from(["ann", "bob", "ann ", "ünï"])


def links_from_scratch(user_id: str, events: Events) -> list[bytes]:
    """link[0] = H(user), link[i + 1] = H(link[i] + event i), by hand."""

    def step(link: bytes, event: bytes) -> bytes:
        return hashlib.blake2b(link + event, digest_size=16).digest()

    first = hashlib.blake2b(user_id.encode(), digest_size=16, person=b"mfalcon.user").digest()
    return list(accumulate((event.tobytes() for event in events), step, initial=first))


def assert_is(history: History, user_id: str, events: Events) -> None:
    assert history.user_id == user_id
    assert len(history) == len(events)
    assert history.events.dtype == EVENT_DTYPE
    assert history.events.tobytes() == events.tobytes()
    assert [history.link(i) for i in range(len(events) + 1)] == links_from_scratch(user_id, events)


class Log(RuleBasedStateMachine):
    """Appends, deletes and snapshots of a few users."""

    def __init__(self) -> None:
        super().__init__()
        self.log = HistoryLog()
        self.model: dict[str, Events] = {}
        self.snapshots: list[tuple[History, str, Events]] = []
        self.seed = 0

    def new_events(self, user_id: str, count: int) -> Events:
        self.seed += 1
        known = self.model.get(user_id, no_events())
        return random_events(count, self.seed, int(known["time_ms"][-1]) if len(known) else 0)

    @rule(user_id=USERS, count=st.sampled_from([0, 1, 2, 15, 16, 17, 40]), state_len=st.booleans())
    def append(self, user_id: str, count: int, state_len: bool) -> None:
        events, known = self.new_events(user_id, count), self.model.get(user_id, no_events())
        after = self.log.append(user_id, events, len(known) if state_len else None)
        self.model[user_id] = np.concatenate([known, events])
        assert after == len(self.model[user_id])
        events["item_id"] = -1  # the caller's array is the caller's again

    @rule(user_id=USERS, off_by=st.sampled_from([-1, 1, 100]))
    def append_at_the_wrong_length(self, user_id: str, off_by: int) -> None:
        size = len(self.model.get(user_id, no_events()))
        with pytest.raises(LengthMismatch) as caught:
            self.log.append(user_id, self.new_events(user_id, 3), size + off_by)
        assert caught.value.history_len == size

    @rule(user_id=USERS)
    def append_the_past(self, user_id: str) -> None:
        known = self.model.get(user_id, no_events())
        if len(known) and known["time_ms"][-1] > 0:
            with pytest.raises(InvalidInput, match=r"events\[0\]\.time_ms"):
                self.log.append(user_id, np.array([(1, 1, 1, known["time_ms"][-1] - 1)], dtype=EVENT_DTYPE))

    @rule(user_id=USERS)
    def delete(self, user_id: str) -> None:
        self.log.delete(user_id)
        self.model.pop(user_id, None)

    @rule(user_id=USERS)
    def snapshot(self, user_id: str) -> None:
        known = self.model.get(user_id, no_events())
        self.snapshots.append((self.log.snapshot(user_id), user_id, known.copy()))

    @invariant()
    def snapshots_stay(self) -> None:
        for history, user_id, events in self.snapshots[-6:]:
            assert_is(history, user_id, events)

    def teardown(self) -> None:
        for history, user_id, events in self.snapshots:
            assert_is(history, user_id, events)
        for user_id, events in self.model.items():
            assert_is(self.log.snapshot(user_id), user_id, events)


TestLog = Log.TestCase
TestLog.settings = settings(max_examples=15, stateful_step_count=20)


def test_chain_continues_from_any_link() -> None:
    events = random_events(20)
    whole = chain(first_link("ann"), events)
    assert len(whole) == 20 * LINK_BYTES
    link = whole[6 * LINK_BYTES : 7 * LINK_BYTES]
    assert chain(link, events[7:]) == whole[7 * LINK_BYTES :]
    assert chain(link, no_events()) == b""


def test_every_bit_of_an_event_and_the_user_reach_the_link() -> None:
    events = random_events(3)
    base = links_from_scratch("ann", events)[-1]
    assert base == chain(first_link("ann"), events)[-LINK_BYTES:]
    for byte in range(EVENT_DTYPE.itemsize):
        content = bytearray(events.tobytes())
        content[EVENT_DTYPE.itemsize + byte] ^= 1
        edited = np.frombuffer(bytes(content), dtype=EVENT_DTYPE)
        assert chain(first_link("ann"), edited)[-LINK_BYTES:] != base
    assert chain(first_link("bob"), events)[-LINK_BYTES:] != base
    assert chain(first_link("ann"), events[[1, 0, 2]])[-LINK_BYTES:] != base


def test_recent_events_older_than_the_log_are_refused() -> None:
    events = random_events(5)
    with pytest.raises(InvalidInput, match=r"recent_events\[0\]\.time_ms: got 0, must be at least"):
        check_order(events, np.zeros(1, dtype=EVENT_DTYPE), "recent_events")
    check_order(events, events[-1:], "recent_events")
    check_order(no_events(), events, "recent_events")


def test_a_refused_append_makes_no_user() -> None:
    log = HistoryLog()
    with pytest.raises(LengthMismatch):
        log.append("ann", random_events(1), 3)
    assert len(log) == 0

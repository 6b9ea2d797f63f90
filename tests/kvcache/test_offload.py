"""Offload from the device to the host: the newest state of a user, copied onto its ancestor; a deletion stays one."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mfalcon.errors import Overloaded
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History, no_history
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.cache import state_key
from mfalcon.kvcache.offload import Offload
from mfalcon.kvcache.tier import Entry, LruTier
from tests.small import random_events

EVENTS = random_events(40)
TIMEOUT_S = 10.0


@dataclass(eq=False)
class State:
    """Of the first `stop` events of a life, on the device or on the host."""

    stop: int
    life: bytes = b"1"
    num_bytes: int = 10
    pins: int = 0


@dataclass
class Gate:
    """Copies pass one by one when told, or all."""

    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    may_pass: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    open: bool = True
    error: Exception | None = None

    def pass_through(self) -> None:
        if not self.open:
            self.entered.release()
            assert self.may_pass.acquire(timeout=TIMEOUT_S)
        if self.error is not None:
            raise self.error

    def shut_and_wait_for(self, offer: Callable[[], object]) -> None:
        """Offer a state and return when its copy has begun."""
        self.open = False
        offer()
        assert self.entered.acquire(timeout=TIMEOUT_S)

    def let_go(self) -> None:
        self.open = True
        self.may_pass.release()


class Setting:
    """A demotion of named states; `marks` counts moments of the device thread."""

    def __init__(self, max_waiting: int = 3, host_budget: int = 1000) -> None:
        self.gate = Gate()
        self.tombstones = Tombstones()
        self.host: LruTier[State] = LruTier(host_budget)
        self.marks = count()
        self.seen: list[tuple[int, int, int | None]] = []
        self.demotion: Offload[State, int] = Offload(
            "f", self.host, lambda: next(self.marks), self.copy, self.tombstones, max_waiting=max_waiting
        )

    def copy(self, state: State, mark: int, onto: State | None) -> State:
        self.gate.pass_through()
        self.seen.append((state.stop, mark, onto.stop if onto is not None else None))
        return State(state.stop, state.life)

    def offer(self, stop: int, user: str = "ann", life: bytes = b"1", start: int = 0) -> State:
        state = State(stop, life)
        self.demotion.offer(history(stop, user, life), start, state)
        return state

    def held(self, user: str = "ann", start: int = 0) -> int | None:
        entry = self.host.get(user_hash(user), start)
        return None if entry is None else entry.state.stop


def history(stop: int, user: str = "ann", life: bytes = b"1", first_item: int = 0) -> History:
    events = EVENTS[:stop].copy()
    events["item_id"][:1] += first_item
    return no_history(user, life).extended(events)


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.gate.let_go()
    made.demotion.close()


def test_a_state_grows_on_the_host_by_what_is_new(setting: Setting) -> None:
    for stop in (10, 15, 15):
        setting.offer(stop)
        setting.demotion.idle()
    assert setting.seen == [(10, 0, None), (15, 1, 10)]
    assert setting.held() == 15
    assert setting.demotion.num_demoted == 2 and setting.demotion.num_dropped == 0
    entry = setting.host.get(user_hash("ann"), 0)
    assert entry is not None and entry.key == state_key("f", history(15), 0, 15)


def test_what_is_no_ancestor_is_nothing_to_copy_onto(setting: Setting) -> None:
    for stop, start, edit in ((10, 0, 0), (12, 0, 1), (14, 8, 1), (13, 8, 1)):
        setting.demotion.offer(history(stop, first_item=edit), start, State(stop))
        setting.demotion.idle()
    assert [onto for *_, onto in setting.seen] == [None] * 4
    assert (setting.held(start=0), setting.held(start=8)) == (12, 13)


def test_only_the_newest_of_a_user_waits_and_the_oldest_user_makes_room(setting: Setting) -> None:
    setting.gate.shut_and_wait_for(lambda: setting.offer(5, "first"))
    for stop in (5, 6):
        for user in ("ann", "bob", "eve"):
            setting.offer(stop, user)
    assert len(setting.demotion) == 3 and setting.demotion.num_dropped == 0
    setting.offer(9, "dan")
    assert len(setting.demotion) == 3 and setting.demotion.num_dropped == 1
    setting.gate.let_go()
    setting.demotion.idle()
    assert [setting.held(user) for user in ("first", "ann", "bob", "eve", "dan")] == [5, None, 6, 6, 9]
    assert [mark for _, mark, _ in setting.seen] == [0, 5, 6, 7]


def test_the_device_s_memory_is_let_go_after_the_copy(setting: Setting) -> None:
    alive: list[weakref.ref[State]] = []

    def offer() -> None:
        alive.append(weakref.ref(setting.offer(5)))
        alive.append(weakref.ref(setting.offer(6, "bob")))

    gc.disable()
    try:
        setting.gate.shut_and_wait_for(offer)
        assert all(ref() is not None for ref in alive)
        setting.gate.let_go()
        setting.demotion.idle()
        assert all(ref() is None for ref in alive)
        setting.gate.error = Overloaded("full")
        refused = weakref.ref(setting.offer(7))
        setting.demotion.idle()
        setting.gate.error.__traceback__ = None  # this test holds the error
        assert refused() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [Overloaded("full"), RuntimeError("broken")])
def test_what_cannot_be_copied_is_counted_and_the_next_is_copied(setting: Setting, error: Exception) -> None:
    setting.gate.error = error
    setting.offer(7)
    setting.demotion.idle()
    assert setting.demotion.num_dropped == 1 and setting.demotion.num_demoted == 0 and setting.held() is None
    setting.gate.error = None
    setting.offer(8)
    setting.demotion.idle()
    assert setting.held() == 8


@pytest.mark.parametrize("how", ["forget", "clear", "grave alone"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_deletion_while_a_state_waits_or_is_being_copied(setting: Setting, how: str, waits: bool) -> None:
    setting.gate.shut_and_wait_for(lambda: setting.offer(5, "bob" if waits else "ann"))
    if waits:
        setting.offer(6, "ann")
    setting.tombstones.add(b"1" if how == "grave alone" else b"some other life")
    match how:
        case "forget":
            setting.demotion.delete(user_hash("ann"))
        case "clear":
            setting.demotion.clear()
    setting.offer(7, "ann", b"2")  # the next life is none of it
    setting.gate.let_go()
    setting.demotion.idle()
    assert setting.seen[-1][2] is None and setting.held("ann") == 7
    assert (setting.held("bob") == 5) == (waits and how == "forget")


def test_a_deletion_as_the_host_takes_the_state_is_not_undone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grave is dug, and the host's tier cleared, after the demotion looked for a grave and before it put."""
    put = LruTier.put

    def late(tier: LruTier[State], entry: Entry[State]) -> list[Entry[State]]:
        setting.tombstones.add(b"1")
        tier.remove(user_hash("ann"))
        return put(tier, entry)

    monkeypatch.setattr(LruTier, "put", late)
    setting.offer(5)
    setting.demotion.idle()
    assert setting.held() is None and setting.demotion.num_demoted == 0


def test_buried_and_late_offers_are_refused(setting: Setting) -> None:
    setting.tombstones.add(b"1")
    setting.offer(5)
    setting.demotion.idle()
    setting.demotion.close()
    setting.offer(5, life=b"2")
    assert len(setting.demotion) == 0 and not setting.seen and setting.demotion.num_dropped == 0


def test_many_deletions_race_many_demotions() -> None:
    """After a deletion's calls return, nothing of that life is ever seen on the host."""
    setting = Setting(max_waiting=4)
    lives = dict.fromkeys(("ann", "bob"), 0)
    wrong = []
    for number in range(1_500):
        user = ("ann", "bob")[number % 2]
        life = b"%s %d" % (user.encode(), lives[user])
        setting.offer(1 + number % 30, user, life)
        if number % 3 == 0:
            setting.tombstones.add(life)
            setting.demotion.delete(user_hash(user))
            setting.host.remove(user_hash(user))
            lives[user] += 1
            if setting.held(user) is not None:
                wrong.append(number)
    setting.demotion.idle()
    for user, number in lives.items():
        entry = setting.host.get(user_hash(user), 0)
        assert entry is None or entry.state.life == b"%s %d" % (user.encode(), number)
        assert number > 100
    setting.demotion.close()
    assert not wrong and setting.demotion.num_demoted > 0


class Machine(RuleBasedStateMachine):
    """Offers, deletions and copies step by step, against what the host may hold."""

    users = st.sampled_from(["ann", "bob", "eve"])

    @initialize()
    def start(self) -> None:
        self.setting = Setting(max_waiting=2, host_budget=20)
        self.life = dict.fromkeys(("ann", "bob", "eve"), 0)
        self.offered: dict[str, int] = {}
        self.in_copy = False

    def life_of(self, user: str) -> bytes:
        return b"%s %d" % (user.encode(), self.life[user])

    @rule(user=users, stop=st.integers(1, 40))
    def offer(self, user: str, stop: int) -> None:
        shut_and_idle = not self.setting.gate.open and not self.in_copy
        self.setting.offer(stop, user, self.life_of(user))
        self.offered[user] = stop
        if shut_and_idle:
            assert self.setting.gate.entered.acquire(timeout=TIMEOUT_S)
            self.in_copy = True

    @rule()
    def shut(self) -> None:
        if self.setting.gate.open:
            self.setting.demotion.idle()
            self.setting.gate.open = False

    @rule()
    def let_go(self) -> None:
        if self.in_copy:
            self.setting.gate.let_go()
            self.in_copy = False
        self.setting.gate.open = True
        self.setting.demotion.idle()

    @rule(user=users, everybody=st.booleans())
    def delete(self, user: str, everybody: bool) -> None:
        for one in self.life if everybody else [user]:
            if not everybody:
                self.setting.tombstones.add(self.life_of(one))
            self.life[one] += 1
            self.offered.pop(one, None)
        if everybody:
            self.setting.demotion.clear()
            self.setting.host.clear()
        else:
            self.setting.demotion.delete(user_hash(user))
            self.setting.host.remove(user_hash(user))

    @invariant()
    def the_host_holds_nothing_of_the_dead(self) -> None:
        for user in self.life:
            entry = self.setting.host.get(user_hash(user), 0)
            assert entry is None or entry.state.life == self.life_of(user)

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.setting.demotion) <= 2 and self.setting.host.num_bytes <= 20

    def teardown(self) -> None:
        if hasattr(self, "setting"):
            self.let_go()
            for user, stop in self.offered.items():  # None: dropped for want of room here or there
                assert self.setting.held(user) in (None, stop) or self.setting.demotion.num_dropped
            self.setting.demotion.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

"""Offload from the device to the host: the newest state of a user, copied onto its ancestor; a deletion stays one."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from weakref import WeakKeyDictionary

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mfalcon.errors import Overloaded
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History
from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.block_pool import PageRun
from mfalcon.kvcache.copy import Mark, ThreadCopier
from mfalcon.kvcache.offload import Offload
from mfalcon.kvcache.offload_queue import Offer
from mfalcon.kvcache.state import KVPool, KVState
from mfalcon.kvcache.tier import Entry, LruTier, state_key
from tests.kvcache.states import EVENTS, LAYOUT, PAGE, history, state_of

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Moment:
    """The number of an offer."""

    number: int

    def wait(self) -> None:
        pass


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


class GatedCopier(ThreadCopier):
    """Copies when the gate lets it, and notes tokens, number of the offer and tokens of what it copied onto."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.lives: WeakKeyDictionary[PageRun, bytes] = WeakKeyDictionary()
        self.numbers = count()
        self.seen: list[tuple[int, int, int | None]] = []

    def mark(self) -> Moment:
        return Moment(next(self.numbers))

    def demote(self, state: KVState, pool: KVPool, mark: Mark, onto: KVState | None = None) -> KVState:
        self.gate.pass_through()
        assert isinstance(mark, Moment)
        self.seen.append((state.num_tokens, mark.number, onto.num_tokens if onto is not None else None))
        copied = state_of(state.num_tokens, pool)
        self.lives[copied.run] = self.lives[state.run]
        return copied


class Setting:
    """An offload of states of as many pages as their history has events."""

    def __init__(self, max_waiting: int = 30, host_budget: int = 1000) -> None:
        self.copier = GatedCopier()
        self.gate = self.copier.gate
        self.seen = self.copier.seen
        self.tombstones = Tombstones()
        self.host = LruTier(host_budget * PAGE)
        self.offload = Offload(
            "f", self.host, KVPool(LAYOUT), self.copier, self.tombstones, budget_bytes=max_waiting * PAGE
        )

    def offer(self, stop: int, user: str = "ann", life: bytes = b"1", start: int = 0) -> PageRun:
        return self.offer_of(history(stop, user, life), start)

    def offer_of(self, history: History, start: int) -> PageRun:
        state = state_of(len(history))
        self.copier.lives[state.run] = history.generation
        self.offload.offer(Offer(history, start, state, self.copier.mark()))
        return state.run

    def held(self, user: str = "ann", start: int = 0) -> int | None:
        entry = self.host.get(user_hash(user), start)
        return None if entry is None else entry.state.num_tokens

    def life(self, user: str) -> bytes | None:
        """Whose state the host holds."""
        entry = self.host.get(user_hash(user), 0)
        return None if entry is None else self.copier.lives[entry.state.run]

    def close(self) -> None:
        self.gate.let_go()
        self.offload.close()
        self.copier.close()


def edited(stop: int) -> History:
    events = EVENTS[:stop].copy()
    events["item_id"][:1] += 1
    return history(events, life=b"1")


@pytest.fixture
def setting() -> Iterator[Setting]:
    made = Setting()
    yield made
    made.close()


def test_a_state_grows_on_the_host_by_what_is_new(setting: Setting) -> None:
    for stop in (10, 15, 15):
        setting.offer(stop)
        setting.offload.idle()
    assert setting.seen == [(10, 0, None), (15, 1, 10)]
    assert setting.held() == 15
    assert setting.offload.num_copied == 2 and setting.offload.num_dropped == 0
    entry = setting.host.get(user_hash("ann"), 0)
    assert entry is not None and entry.key == state_key("f", history(15, life=b"1"), 0, 15)


def test_what_is_no_ancestor_is_nothing_to_copy_onto(setting: Setting) -> None:
    for of, start in ((history(10, life=b"1"), 0), (edited(12), 0), (edited(14), 8), (edited(13), 8)):
        setting.offer_of(of, start)
        setting.offload.idle()
    assert [onto for *_, onto in setting.seen] == [None] * 4
    assert (setting.held(start=0), setting.held(start=8)) == (12, 13)


def test_only_the_newest_of_a_user_waits_and_the_oldest_offer_makes_room(setting: Setting) -> None:
    setting.gate.shut_and_wait_for(lambda: setting.offer(5, "first"))
    for stop in (9, 10):
        for user in ("ann", "bob", "eve"):
            setting.offer(stop, user)
    assert len(setting.offload) == 3 and setting.offload.num_dropped == 0
    setting.offer(9, "dan")
    assert len(setting.offload) == 3 and setting.offload.num_dropped == 1
    assert setting.offload.make_room()  # the device's memory is needed: bob's goes
    setting.gate.let_go()
    setting.offload.idle()
    assert [setting.held(user) for user in ("first", "ann", "bob", "eve", "dan")] == [5, None, None, 10, 9]
    assert [number for _, number, _ in setting.seen] == [0, 6, 7]
    assert not setting.offload.make_room()


def test_the_device_s_memory_is_let_go_after_the_copy(setting: Setting) -> None:
    alive: list[weakref.ref[PageRun]] = []

    def offer() -> None:
        alive.append(weakref.ref(setting.offer(5)))
        alive.append(weakref.ref(setting.offer(6, "bob")))

    gc.disable()
    try:
        setting.gate.shut_and_wait_for(offer)
        assert all(ref() is not None for ref in alive)
        setting.gate.let_go()
        setting.offload.idle()
        assert all(ref() is None for ref in alive)
        setting.gate.error = Overloaded("full")
        refused = weakref.ref(setting.offer(7))
        setting.offload.idle()
        setting.gate.error.__traceback__ = None  # this test holds the error
        assert refused() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [Overloaded("full"), RuntimeError("broken")])
def test_what_cannot_be_copied_is_counted_and_the_next_is_copied(setting: Setting, error: Exception) -> None:
    setting.gate.error = error
    setting.offer(7)
    setting.offload.idle()
    assert setting.offload.num_dropped == 1 and setting.offload.num_copied == 0 and setting.held() is None
    setting.gate.error = None
    setting.offer(8)
    setting.offload.idle()
    assert setting.held() == 8


@pytest.mark.parametrize("how", ["user", "everybody", "tombstone alone"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_deletion_while_a_state_waits_or_is_being_copied(setting: Setting, how: str, waits: bool) -> None:
    setting.gate.shut_and_wait_for(lambda: setting.offer(5, "bob" if waits else "ann"))
    if waits:
        setting.offer(6, "ann")
    setting.tombstones.add(b"1" if how == "tombstone alone" else b"some other life")
    match how:
        case "user":
            setting.offload.delete(user_hash("ann"))
        case "everybody":
            setting.offload.delete(None)
    setting.offer(7, "ann", b"2")  # the next life is none of it
    setting.gate.let_go()
    setting.offload.idle()
    assert setting.seen[-1][2] is None and setting.held("ann") == 7
    assert (setting.held("bob") == 5) == (waits and how == "user")


def test_a_deletion_as_the_host_takes_the_state_is_not_undone(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tombstone comes, and the host's tier is emptied, after the offload looked for one and before it put."""
    put = setting.host.put

    def late(entry: Entry) -> None:
        setting.tombstones.add(b"1")
        setting.host.delete(user_hash("ann"))
        put(entry)

    monkeypatch.setattr(setting.host, "put", late)
    setting.offer(5)
    setting.offload.idle()
    assert setting.held() is None and setting.offload.num_copied == 0


def test_deleted_and_late_offers_are_refused(setting: Setting) -> None:
    setting.tombstones.add(b"1")
    setting.offer(5)
    setting.offload.idle()
    setting.offload.close()
    setting.offer(5, life=b"2")
    assert len(setting.offload) == 0 and not setting.seen and setting.offload.num_dropped == 0


def test_many_deletions_race_many_copies() -> None:
    """After a deletion's calls return, nothing of that life is ever seen on the host."""
    setting = Setting(max_waiting=60)
    lives = dict.fromkeys(("ann", "bob"), 0)
    wrong = []
    for number in range(1_500):
        user = ("ann", "bob")[number % 2]
        life = b"%s %d" % (user.encode(), lives[user])
        setting.offer(1 + number % 30, user, life)
        if number % 3 == 0:
            setting.tombstones.add(life)
            setting.offload.delete(user_hash(user))
            setting.host.delete(user_hash(user))
            lives[user] += 1
            if setting.held(user) is not None:
                wrong.append(number)
    setting.offload.idle()
    for user, number in lives.items():
        assert setting.life(user) in (None, b"%s %d" % (user.encode(), number))
        assert number > 100
    setting.close()
    assert not wrong and setting.offload.num_copied > 0


class Machine(RuleBasedStateMachine):
    """Offers, deletions and copies step by step, against what the host may hold."""

    users = st.sampled_from(["ann", "bob", "eve"])

    @initialize()
    def start(self) -> None:
        self.setting = Setting(max_waiting=50, host_budget=80)
        self.life = dict.fromkeys(("ann", "bob", "eve"), 0)
        self.offered: dict[str, int] = {}
        self.in_copy = False

    def life_of(self, user: str) -> bytes:
        return b"%s %d" % (user.encode(), self.life[user])

    @rule(user=users, stop=st.integers(1, 40))
    def offer(self, user: str, stop: int) -> None:
        is_there = (self.setting.held(user), self.setting.life(user)) == (stop, self.life_of(user))  # nothing to copy
        begins = not self.setting.gate.open and not self.in_copy and not is_there
        self.setting.offer(stop, user, self.life_of(user))
        self.offered[user] = stop
        if begins:
            assert self.setting.gate.entered.acquire(timeout=TIMEOUT_S)
            self.in_copy = True

    @rule()
    def shut(self) -> None:
        if self.setting.gate.open:
            self.setting.offload.idle()
            self.setting.gate.open = False

    @rule()
    def let_go(self) -> None:
        if self.in_copy:
            self.setting.gate.let_go()
            self.in_copy = False
        self.setting.gate.open = True
        self.setting.offload.idle()

    @rule(user=users, everybody=st.booleans())
    def delete(self, user: str, everybody: bool) -> None:
        for one in self.life if everybody else [user]:
            if not everybody:
                self.setting.tombstones.add(self.life_of(one))
            self.life[one] += 1
            self.offered.pop(one, None)
        if everybody:
            self.setting.offload.delete(None)
            self.setting.host.delete(None)
        else:
            self.setting.offload.delete(user_hash(user))
            self.setting.host.delete(user_hash(user))

    @invariant()
    def the_host_holds_nothing_of_the_dead(self) -> None:
        for user in self.life:
            assert self.setting.life(user) in (None, self.life_of(user))

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.setting.offload) <= 3 and self.setting.host.num_bytes <= 80 * PAGE

    def teardown(self) -> None:
        if hasattr(self, "setting"):
            self.let_go()
            for user, stop in self.offered.items():  # None: dropped for want of room here or there
                assert self.setting.held(user) in (None, stop) or self.setting.offload.num_dropped
            self.setting.close()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_what_the_host_has_already_is_not_copied_again() -> None:
    """Steps that the machine above found once: the second offer never comes to the gate."""
    machine = Machine()
    machine.start()
    machine.offer(user="ann", stop=1)
    machine.shut()
    machine.offer(user="ann", stop=1)
    assert len(machine.setting.seen) == 1
    machine.teardown()

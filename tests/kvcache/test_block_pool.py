"""The accounts of a pool: free and held pages are all pages after every step, and a page has one writer at a time."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mfalcon.errors import Overloaded
from mfalcon.kvcache.block_pool import BlockPool, PageRun

SIZE = 4
NUM_PAGES = 9
numbers = st.integers(0, 10**6)


@dataclass(eq=False)
class State:
    """A run and the names of its tokens."""

    run: PageRun
    tokens: tuple[int, ...]


class Pool(RuleBasedStateMachine):
    """Allocate, append, fork, pin, evict and free against a memory of token names.

    States are drawn by number, not from a bundle: a bundle would hold every one of them for ever.
    """

    @initialize()
    def start(self) -> None:
        self.accounts = BlockPool(NUM_PAGES, SIZE)
        self.memory = [[-1] * SIZE for _ in range(NUM_PAGES)]
        self.accounts.make_room_with(self.evict)
        self.held = [State(self.accounts.empty(), ())]  # as requests in flight do
        self.kept: list[State] = []  # as the host tier does, the oldest first
        self.next_token = 0

    def evict(self) -> bool:
        state = next((state for state in self.kept if not state.run.pins), None)
        if state is not None:
            self.kept.remove(state)
        return state is not None

    def drawn(self, number: int) -> State:
        return self.held[number % len(self.held)]

    @rule(number=numbers, num_new=st.integers(1, 3 * SIZE), leaving=st.sampled_from([0, 0, 2]))
    def append(self, number: int, num_new: int, leaving: int) -> None:
        parent = self.drawn(number)
        try:
            growth = self.accounts.grow(parent.run, len(parent.tokens), num_new, leaving)
        except Overloaded:
            # Everything that may be dropped is gone, and what is left could not hold even the new tokens alone.
            assert all(state.run.pins for state in self.kept)
            assert -(-(len(parent.tokens) % SIZE + num_new) // SIZE) + leaving > self.accounts.num_free
            return
        if growth.copy is not None:
            old, new = growth.copy
            self.memory[new][:] = self.memory[old]
        new_tokens = range(self.next_token, self.next_token + num_new)
        self.next_token += num_new
        state = State(growth.run, (*parent.tokens, *new_tokens))
        for position in range(len(parent.tokens), len(state.tokens)):
            self.memory[state.run.pages[position // SIZE]][position % SIZE] = state.tokens[position]
        assert self.accounts.num_free >= leaving
        self.held.append(state)

    @rule(number=numbers, share=st.floats(0, 1))
    def go_back(self, number: int, share: float) -> None:
        parent = self.drawn(number)
        tokens = parent.tokens[: round(share * len(parent.tokens))]
        self.held.append(State(self.accounts.first(parent.run, len(tokens)), tokens))

    @rule(number=numbers)
    def keep(self, number: int) -> None:
        state = self.drawn(number)
        if state not in self.kept:
            self.kept.append(state)

    @rule(number=numbers)
    def free(self, number: int) -> None:
        self.held.remove(self.drawn(number))
        if not self.held:
            self.held.append(State(self.accounts.empty(), ()))

    @rule(number=numbers)
    def pin_or_unpin(self, number: int) -> None:
        run = self.drawn(number).run
        run.pins = 1 - run.pins

    @rule()
    def evict_one(self) -> None:
        self.evict()

    @invariant()
    def all_pages_are_free_or_held(self) -> None:
        self.accounts.check_integrity({id(s): s.run for s in (*self.held, *self.kept)}.values())

    @invariant()
    def no_state_ever_changes(self) -> None:
        for state in (*self.held, *self.kept):
            found = [self.memory[state.run.pages[i // SIZE]][i % SIZE] for i in range(len(state.tokens))]
            assert found == list(state.tokens)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_integrity_sees_a_lost_and_a_doubled_page() -> None:
    accounts = BlockPool(4, SIZE)
    run = accounts.grow(accounts.empty(), 0, 5).run
    accounts.check_integrity([run])
    with pytest.raises(AssertionError):
        accounts.check_integrity([])
    accounts._free.append(run.pages[0])
    with pytest.raises(AssertionError, match="a held page is free"):
        accounts.check_integrity([run])


def test_a_pool_that_is_in_use_refuses_and_says_so() -> None:
    accounts = BlockPool(2, SIZE)
    run = accounts.grow(accounts.empty(), 0, 2 * SIZE).run
    with pytest.raises(Overloaded, match=r"2 pages\) is in use, 1 more"):
        accounts.grow(run, 2 * SIZE, 1)
    accounts.check_integrity([run])
    del run
    assert accounts.num_free == 2


def test_many_threads_share_a_pool() -> None:
    """Runs are made and dropped at once by several threads; nothing is lost, and no tip is lent twice."""
    accounts = BlockPool(64, SIZE)
    root = accounts.grow(accounts.empty(), 0, 1).run
    tips = []

    def work(_: int) -> None:
        tips.append(accounts.grow(root, 1, 1))
        for number in range(2_000):
            run = accounts.grow(accounts.empty(), 0, 1 + number % 9).run
            accounts.grow(run, 1 + number % 9, 3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as threads:
            list(threads.map(work, range(6)))
    finally:
        sys.setswitchinterval(interval)
    accounts.check_integrity([root, *(tip.run for tip in tips)])
    assert sum(tip.copy is None for tip in tips) == 1


def test_who_came_first_is_asked_first_and_nobody_who_has_left() -> None:
    accounts = BlockPool(4, SIZE)
    kept = {name: [accounts.grow(accounts.empty(), 0, SIZE).run for _ in range(2)] for name in ("older", "newer")}
    leave = [accounts.make_room_with(lambda runs=runs: bool(runs and [runs.pop()])) for runs in kept.values()]  # type: ignore[misc]
    held = [accounts.grow(accounts.empty(), 0, SIZE).run]
    assert [len(runs) for runs in kept.values()] == [1, 2]
    held.append(accounts.grow(accounts.empty(), 0, 2 * SIZE).run)
    assert [len(runs) for runs in kept.values()] == [0, 1]
    for end in (leave[1], leave[1], leave[0]):
        end()
    with pytest.raises(Overloaded):
        accounts.grow(accounts.empty(), 0, SIZE)
    assert len(kept["newer"]) == 1
    accounts.check_integrity([*held, *kept["newer"]])

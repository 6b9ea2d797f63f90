"""The accounts of a pool: free and held pages are all pages after every step, and a page has one writer at a time; with
small pages and without.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mfalcon.errors import Overloaded
from mfalcon.kvcache.block_pool import BlockPool, PageRun

SIZE = 8
NUM_PAGES = 9
numbers = st.integers(0, 10**6)


@dataclass(eq=False)
class State:
    """A run and the names of its tokens."""

    run: PageRun
    tokens: tuple[int, ...]

    def slots(self) -> list[tuple[int, int]]:
        """Page and slot of each token: a small page is a part of a page."""
        size = self.run.page_tokens
        at = [self.run.pages[i // size] * size + i % size for i in range(len(self.tokens))]
        return [divmod(one, SIZE) for one in at]


class Pool(RuleBasedStateMachine):
    """Allocate, append, fork, go back, pin, evict and free against a memory of token names.

    States are drawn by number, not from a bundle: a bundle would hold every one of them for ever.
    """

    small: int | None = None

    @initialize()
    def start(self) -> None:
        self.accounts = BlockPool(NUM_PAGES, SIZE, small_tokens=self.small)
        self.memory = [[-1] * SIZE for _ in range(NUM_PAGES)]
        self.accounts.make_room_with(self.evict)
        self.held = [State(self.accounts.empty(), ())]  # as requests in flight do
        self.kept: list[State] = []  # as the host tier does, the oldest first
        self.next_token = 0

    def evict(self, whole: bool = False) -> bool:
        state = next((state for state in self.kept if not state.run.pins), None)
        if state is not None:
            self.kept.remove(state)
        return state is not None

    def drawn(self, number: int) -> State:
        return self.held[number % len(self.held)]

    @rule(
        number=numbers,
        num_new=st.integers(1, SIZE) | st.integers(1, 3 * SIZE),
        leaving=st.sampled_from([0, 0, 2]),
        size=st.sampled_from([None, None, None, SIZE, "small"]),
    )
    def append(self, number: int, num_new: int, leaving: int, size: int | str | None) -> None:
        parent = self.drawn(number)
        asked = self.small if isinstance(size, str) else size
        num_tokens = len(parent.tokens) + num_new
        try:
            growth = self.accounts.grow(parent.run, len(parent.tokens), num_new, leaving, asked)
        except Overloaded:
            # Everything that may be dropped is gone, and what is left could not hold even the new tokens alone; or all
            # of them, where pages of another size are wanted.
            assert all(state.run.pins for state in self.kept)
            wanted = asked or self.accounts.size_for(num_tokens)
            new = len(parent.tokens) % wanted + num_new if wanted == parent.run.page_tokens else num_tokens
            room = self.accounts.num_free_tokens if wanted == self.small else SIZE * self.accounts.num_free
            assert -(-new // wanted) * wanted + leaving * SIZE > room or self.accounts.num_free < leaving
            return
        state = State(growth.run, parent.tokens)
        assert state.run.page_tokens == (asked or self.accounts.size_for(num_tokens))
        if asked is None and self.small is not None:  # no more than a small page, or a page, of what is needed
            assert len(state.run.pages) * state.run.page_tokens < num_tokens + (
                self.small if num_tokens <= SIZE - self.small else SIZE
            )
        if growth.moved:
            assert growth.copy is None and not set(state.slots()) & set(parent.slots())
            for (page, slot), (old, old_slot) in zip(state.slots(), parent.slots(), strict=True):
                self.memory[page][slot] = self.memory[old][old_slot]
        if growth.copy is not None:
            tokens, in_page = state.run.page_tokens, SIZE // state.run.page_tokens
            source, target = (slice(at % in_page * tokens, (at % in_page + 1) * tokens) for at in growth.copy)
            self.memory[growth.copy[1] // in_page][target] = self.memory[growth.copy[0] // in_page][source]
        state.tokens += tuple(range(self.next_token, self.next_token + num_new))
        self.next_token += num_new
        for (page, slot), token in list(zip(state.slots(), state.tokens, strict=True))[len(parent.tokens) :]:
            self.memory[page][slot] = token
        assert self.accounts.num_free >= leaving
        self.held.append(state)

    @rule(number=numbers, stop=numbers)
    def go_back(self, number: int, stop: int) -> None:
        """Share the pages of a state's first tokens."""
        state = self.drawn(number)
        stop %= len(state.tokens) + 1
        free = self.accounts.num_free_tokens
        shorter = State(self.accounts.first(state.run, stop), state.tokens[:stop])
        assert self.accounts.num_free_tokens == free
        assert len(shorter.run.pages) == -(-stop // state.run.page_tokens)
        self.held.append(shorter)

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
            assert [self.memory[page][slot] for page, slot in state.slots()] == list(state.tokens)

    @invariant()
    def bytes_are_counted_exactly(self) -> None:
        states = (*self.held, *self.kept)
        held = {(s.run.page_tokens, page) for s in states for page in s.run.pages}
        assert self.accounts.num_free_tokens == NUM_PAGES * SIZE - sum(size for size, _ in held)


class SmallPool(Pool):
    """Of small pages a quarter of a page long."""

    small = SIZE // 4


class HalfPool(Pool):
    """Of small pages half a page long."""

    small = SIZE // 2


TestPool = Pool.TestCase
TestSmallPool = SmallPool.TestCase
TestHalfPool = HalfPool.TestCase
TestPool.settings = TestSmallPool.settings = TestHalfPool.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


def test_a_run_is_moved_once_when_it_outgrows_small_pages() -> None:
    """One token at a time: a page of its own for few, then whole pages, and never a page that is copied for nothing."""
    accounts = BlockPool(4, SIZE, small_tokens=SIZE // 4)
    run, moves = accounts.empty(), []
    for num_tokens in range(3 * SIZE):
        growth = accounts.grow(run, num_tokens, 1)
        assert growth.copy is None
        moves += [num_tokens] * growth.moved
        run = growth.run
        taken = 4 * SIZE - accounts.num_free_tokens
        del growth
        assert taken == max(1, len(run.pages)) * run.page_tokens or num_tokens in moves
    assert moves == [SIZE - SIZE // 4] and accounts.num_free == 1
    accounts.check_integrity([run])


def test_few_pages_are_cut_up() -> None:
    """A small page comes from the page that has the fewest left, and what comes back last makes a page whole again."""
    accounts = BlockPool(3, SIZE, small_tokens=SIZE // 4)
    runs = [accounts.grow(accounts.empty(), 0, 1).run for _ in range(8)]
    assert accounts.num_free == 1 and accounts.num_free_tokens == SIZE
    assert {run.cut_pages for run in runs[:4]} == {runs[0].cut_pages} != {runs[4].cut_pages}
    del runs[5:7], runs[1]
    assert accounts.num_free == 1
    one = accounts.grow(accounts.empty(), 0, 1).run
    assert one.cut_pages == runs[0].cut_pages
    del runs[3:]
    assert accounts.num_free == 2
    accounts.check_integrity([*runs, one])


def test_small_pages_that_are_free_are_no_room_for_a_whole_one() -> None:
    accounts = BlockPool(2, SIZE, small_tokens=SIZE // 4)
    runs = [accounts.grow(accounts.empty(), 0, 1).run for _ in range(5)]
    wanted: list[bool] = []

    def drop(whole: bool) -> bool:
        wanted.append(whole)
        return bool(runs and [runs.pop(0)])

    accounts.make_room_with(drop)
    longer = accounts.grow(accounts.empty(), 0, SIZE).run
    assert wanted == [True] * 4 and len(runs) == 1
    runs.clear()
    two = [accounts.grow(accounts.empty(), 0, 1).run for _ in range(4)]
    with pytest.raises(Overloaded, match=r"2 pages\) is in use, 1 more"):
        accounts.grow(accounts.empty(), 0, 1)
    assert wanted[4:] == [False]
    accounts.check_integrity([longer, *two])


def test_integrity_sees_a_lost_and_a_doubled_page() -> None:
    accounts = BlockPool(4, SIZE)
    run = accounts.grow(accounts.empty(), 0, SIZE + 1).run
    accounts.check_integrity([run])
    with pytest.raises(AssertionError):
        accounts.check_integrity([])
    accounts._free.append(run.pages[0])
    with pytest.raises(AssertionError, match="a held page is free"):
        accounts.check_integrity([run])
    accounts = BlockPool(4, SIZE, small_tokens=SIZE // 4)
    run = accounts.grow(accounts.empty(), 0, 5).run
    accounts.check_integrity([run])
    with pytest.raises(AssertionError, match="a small page is neither free nor held"):
        accounts.check_integrity([])
    with pytest.raises(AssertionError, match="a count is wrong"):
        accounts.check_integrity([run, run])
    whole = accounts.grow(accounts.empty(), 0, SIZE).run
    accounts._free.append(next(iter(run.cut_pages)))
    with pytest.raises(AssertionError, match="a page that is cut up is free or held"):
        accounts.check_integrity([run, whole])


def test_a_pool_that_is_in_use_refuses_and_says_so() -> None:
    accounts = BlockPool(2, SIZE)
    run = accounts.grow(accounts.empty(), 0, 2 * SIZE).run
    with pytest.raises(Overloaded, match=r"2 pages\) is in use, 1 more"):
        accounts.grow(run, 2 * SIZE, 1)
    accounts.check_integrity([run])
    del run
    assert accounts.num_free == 2


@pytest.mark.parametrize("small", [None, SIZE // 4])
def test_many_threads_share_a_pool(small: int | None) -> None:
    """Runs are made and dropped at once by several threads; nothing is lost, and no tip is lent twice."""
    accounts = BlockPool(64, SIZE, small_tokens=small)
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
    leave = [accounts.make_room_with(lambda _, runs=runs: bool(runs and [runs.pop()])) for runs in kept.values()]  # type: ignore[misc]
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

"""The host tier against a model of an LRU by bytes."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from mfalcon.kvcache.state import KVPool, PlainLayout
from mfalcon.kvcache.tier import Entry, LruTier, StateKey
from tests.kvcache.states import LAYOUT, PAGE, state_of

BUDGET = 100


def entry_of(user_id: str, stop: int, num_pages: int, start: int = 0) -> Entry:
    return Entry(StateKey("f", user_id.encode(), start, stop, b""), state_of(num_pages))


class Model:
    """Least recently put or got goes first, until the rest fits."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.evicted = 0

    def put(self, user_id: str, stop: int, size: int) -> None:
        self.entries.pop(user_id, None)
        if size > BUDGET:
            self.evicted += 1
            return
        self.entries[user_id] = (stop, size)
        while self.num_bytes > BUDGET:
            self.entries.popitem(last=False)
            self.evicted += 1

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.entries.values())


users = st.sampled_from("abcdef")
steps = st.one_of(
    st.tuples(st.just("put"), users, st.sampled_from([0, 1, 30, 49, 50, 51, 99, 100, 101])),
    st.tuples(st.just("get"), users, st.just(0)),
    st.tuples(st.just("delete"), users, st.just(0)),
)


@given(st.lists(steps, max_size=60))
def test_lru_by_bytes(plan: list[tuple[str, str, int]]) -> None:
    tier = LruTier(BUDGET * PAGE)
    model = Model()
    for number, (what, user_id, size) in enumerate(plan):
        if what == "put":
            tier.put(entry_of(user_id, number, size))
            model.put(user_id, number, size)
        elif what == "get":
            entry, expected = tier.get(user_id.encode(), 0), model.entries.get(user_id)
            assert (entry and (entry.key.stop, entry.state.num_bytes // PAGE)) == expected
            if expected:
                model.entries.move_to_end(user_id)
        else:
            tier.delete(user_id.encode())
            model.entries.pop(user_id, None)
        assert tier.num_bytes == model.num_bytes * PAGE <= BUDGET * PAGE
        assert len(tier) == len(model.entries)
        assert tier.num_evicted == model.evicted
    for user_id in "abcdef":
        entry, expected = tier.get(user_id.encode(), 0), model.entries.get(user_id)
        assert (entry and (entry.key.stop, entry.state.num_bytes // PAGE)) == expected


def test_no_budget_keeps_nothing() -> None:
    tier = LruTier(0)
    tier.put(entry_of("a", 1, 1))
    assert len(tier) == tier.num_bytes == 0 and tier.num_evicted == 1


def test_room_is_made_by_the_least_recently_used_that_is_not_in_flight() -> None:
    tier = LruTier(BUDGET * PAGE)
    for user_id in "abcd":
        tier.put(entry_of(user_id, 1, 10))
    in_flight = tier.get(b"a", 0)
    assert in_flight is not None
    tier.get(b"b", 0)
    with in_flight.state.pinned():
        assert tier.make_room(held={(b"c", 0)}) and tier.peek(b"d", 0) is None  # held elsewhere: nothing would be freed
        assert tier.make_room() and tier.peek(b"c", 0) is None
        assert tier.make_room() and tier.peek(b"b", 0) is None
        assert not tier.make_room() and tier.peek(b"a", 0) is not None
    assert (tier.num_bytes, tier.num_evicted) == (10 * PAGE, 3)


def of_small_pages(tier: LruTier, pool: KVPool, users: str, num_tokens: int) -> None:
    for user_id in users:
        tier.put(Entry(StateKey("f", user_id.encode(), 0, 1, b""), pool.empty().grown(num_tokens)))


def users_in(tier: LruTier) -> str:
    return "".join(sorted(key.user.decode() for key in tier.hottest()))


def test_a_whole_page_is_freed_by_few() -> None:
    """Not by as many as are used less than the last one on some page; a page with one in flight is passed over."""
    pool = KVPool(PlainLayout(LAYOUT.shape, 128), 4)
    tier = LruTier(pool.num_bytes)
    pool.accounts.make_room_with(tier.make_room)
    of_small_pages(tier, pool, "abcdefghijklmnop", 20)  # four on each page
    assert pool.num_free_bytes == 0 and tier.num_bytes == pool.num_bytes
    for user in b"abcdefghijklmnop"[::4]:
        tier.get(bytes([user]), 0)  # one of each page was used just now
    pool.empty().grown(128)
    assert users_in(tier) == "efghijklmnop" and tier.num_evicted == 4
    assert pool.accounts.num_free == 1 and tier.num_bytes == 12 * pool.layout.page_bytes // 4
    of_small_pages(tier, pool, "abcd", 20)
    in_flight = tier.get(b"g", 0)
    assert in_flight is not None
    with in_flight.state.pinned():
        pool.empty().grown(128)
    assert users_in(tier) == "abcdegmnop" and tier.num_evicted == 10  # f and h alone, then j and those beside it


def test_a_small_page_costs_one_state() -> None:
    pool = KVPool(PlainLayout(LAYOUT.shape, 128), 2)
    tier = LruTier(pool.num_bytes)
    pool.accounts.make_room_with(tier.make_room)
    of_small_pages(tier, pool, "abcdefgh", 20)
    state = pool.empty().grown(5)
    assert users_in(tier) == "bcdefgh" and tier.num_evicted == 1
    tier.delete(None)
    assert tier.num_bytes == 0 and pool.num_free_bytes == pool.num_bytes - state.num_bytes


def test_windows_of_a_user_are_states_of_their_own() -> None:
    tier = LruTier(BUDGET * PAGE)
    for start, num_pages in ((0, 40), (8, 30), (16, 20)):
        tier.put(entry_of("a", 20, num_pages, start))
    assert len(tier) == 3 and tier.num_bytes == 90 * PAGE
    tier.delete_before(b"a", 8)
    assert tier.peek(b"a", 0) is None and tier.num_bytes == 50 * PAGE
    tier.get(b"a", 8)
    tier.put(entry_of("b", 1, 60))
    assert tier.peek(b"a", 16) is None and tier.peek(b"a", 8) is not None
    tier.delete(b"a")
    assert not tier.holds(b"a") and tier.holds(b"b") and tier.num_bytes == 60 * PAGE
    tier.delete(None)
    assert not tier.holds(b"b") and tier.num_bytes == len(tier) == 0


def test_the_hottest_are_found_without_being_kept_or_used() -> None:
    tier = LruTier(3 * PAGE)
    for user in "abc":
        tier.put(entry_of(user, 1, 1))
    tier.get(b"a", 0)
    hottest = tier.hottest()
    assert [key.user for key in hottest] == [b"a", b"c", b"b"]
    found = tier.at(hottest[2])
    assert found is not None and found.key == hottest[2]
    tier.put(entry_of("b", 2, 1))
    assert tier.at(hottest[2]) is None  # another state by now
    tier.at(hottest[1])
    tier.put(entry_of("d", 1, 1))
    assert tier.at(hottest[1]) is None  # evicted, as it was used before the others

"""The host tier against a model of an LRU by bytes."""

from collections import OrderedDict
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from mfalcon.kvcache.tier import Entry, LruTier, StateKey

BUDGET = 100


@dataclass(frozen=True, slots=True)
class Block:
    num_bytes: int
    pins: int = 0


def entry_of(user_id: str, stop: int, size: int) -> Entry[Block]:
    return Entry(StateKey("f", user_id.encode(), 0, stop, b""), Block(size))


class Model:
    """Least recently put or got goes first, until the rest fits."""

    def __init__(self) -> None:
        self.entries: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self.evicted = 0

    def put(self, user_id: str, stop: int, size: int) -> list[str]:
        self.entries.pop(user_id, None)
        if size > BUDGET:
            self.evicted += 1
            return [user_id]
        self.entries[user_id] = (stop, size)
        evicted = []
        while self.num_bytes > BUDGET:
            evicted.append(self.entries.popitem(last=False)[0])
        self.evicted += len(evicted)
        return evicted

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.entries.values())


users = st.sampled_from("abcdef")
steps = st.one_of(
    st.tuples(st.just("put"), users, st.sampled_from([0, 1, 30, 49, 50, 51, 99, 100, 101])),
    st.tuples(st.just("get"), users, st.just(0)),
    st.tuples(st.just("remove"), users, st.just(0)),
)


@given(st.lists(steps, max_size=60))
def test_lru_by_bytes(plan: list[tuple[str, str, int]]) -> None:
    tier: LruTier[Block] = LruTier(BUDGET)
    model = Model()
    for number, (what, user_id, size) in enumerate(plan):
        if what == "put":
            evicted = [entry.key.user.decode() for entry in tier.put(entry_of(user_id, number, size))]
            assert evicted == model.put(user_id, number, size)
        elif what == "get":
            entry, expected = tier.get(user_id.encode(), 0), model.entries.get(user_id)
            assert (entry and (entry.key.stop, entry.state.num_bytes)) == expected
            if expected:
                model.entries.move_to_end(user_id)
        else:
            tier.remove(user_id.encode())
            model.entries.pop(user_id, None)
        assert tier.num_bytes == model.num_bytes <= BUDGET
        assert len(tier) == len(model.entries)
        assert tier.num_evicted == model.evicted
    for user_id in "abcdef":
        entry, expected = tier.get(user_id.encode(), 0), model.entries.get(user_id)
        assert (entry and (entry.key.stop, entry.state.num_bytes)) == expected


def test_no_budget_keeps_nothing() -> None:
    tier: LruTier[Block] = LruTier(0)
    assert len(tier.put(entry_of("a", 1, 1))) == 1
    assert len(tier) == tier.num_bytes == 0


def test_room_is_made_by_the_least_recently_used_that_is_not_in_flight() -> None:
    tier: LruTier[Block] = LruTier(BUDGET)
    for user_id, pins in (("a", 1), ("b", 0), ("c", 0)):
        tier.put(Entry(StateKey("f", user_id.encode(), 0, 1, b""), Block(10, pins)))
    tier.get(b"b", 0)
    assert tier.make_room() and tier.peek(b"c", 0) is None
    assert tier.make_room() and tier.peek(b"b", 0) is None
    assert not tier.make_room() and tier.peek(b"a", 0) is not None
    assert (tier.num_bytes, tier.num_evicted) == (10, 2)


def test_windows_of_a_user_are_states_of_their_own() -> None:
    tier: LruTier[Block] = LruTier(BUDGET)
    for start, size in ((0, 40), (8, 30), (16, 20)):
        tier.put(Entry(StateKey("f", b"a", start, 20, b""), Block(size)))
    assert len(tier) == 3 and tier.num_bytes == 90
    tier.drop_before(b"a", 8)
    assert tier.peek(b"a", 0) is None and tier.num_bytes == 50
    tier.get(b"a", 8)
    evicted = tier.put(entry_of("b", 1, 60))
    assert [entry.key.start for entry in evicted] == [16]
    tier.remove(b"a")
    assert not tier.holds(b"a") and tier.holds(b"b") and tier.num_bytes == 60

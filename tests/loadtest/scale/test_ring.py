"""The ring: every replica has about its share, and nobody moves who need not."""

import math

import pytest

from loadtest.scale.ring import Ring, most_in_flight
from mfalcon.rank_key import rank_key

KEYS = [rank_key(f"user-{number}") for number in range(4_000)]


@pytest.mark.parametrize("num_replicas", [1, 2, 4, 7])
def test_every_replica_has_about_its_share(num_replicas: int) -> None:
    ring = Ring([f"10.0.0.{number}:50051" for number in range(num_replicas)])
    owners = [ring.owner(key) for key in KEYS]
    shares = [owners.count(number) / len(KEYS) * num_replicas for number in range(num_replicas)]
    # 3% of the ring's own scatter (1 / sqrt(1024)) and 4% of 4,000 users over 7 replicas, three of both
    assert all(abs(share - 1) < 0.16 for share in shares), shares


def test_when_a_replica_goes_its_users_alone_move() -> None:
    ring = Ring([f"replica-{number}" for number in range(4)])
    before = [ring.owner(key) for key in KEYS]
    after = [ring.owner(key, lambda number: number != 2) for key in KEYS]
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {2}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 4, abs=0.04)
    assert len({new for old, new in zip(before, after, strict=True) if old == 2}) == 3  # to all others


def test_when_a_replica_comes_its_users_alone_move() -> None:
    names = [f"replica-{number}" for number in range(5)]
    four, five = Ring(names[:4]), Ring(names)
    moved = [(four.owner(key), five.owner(key)) for key in KEYS if four.owner(key) != five.owner(key)]
    assert {new for _, new in moved} == {4}
    assert len(moved) / len(KEYS) == pytest.approx(1 / 5, abs=0.04)


def test_a_walk_meets_every_replica_once() -> None:
    ring = Ring(["a", "b", "c"])
    assert sorted(ring.walk("some key")) == [0, 1, 2]
    assert ring.owner("some key", lambda _: False) is None


def test_the_bound_is_a_multiple_of_the_share() -> None:
    assert most_in_flight(math.inf, 7, 4) == 8
    assert most_in_flight(1.0, 7, 4) == 2
    assert most_in_flight(1.25, 7, 4) == 3
    assert most_in_flight(1.25, 0, 4) == 1  # the first request finds a place

"""A tier in the simulation: bytes, recency, and the hit rate that theory gives LRU."""

import numpy as np
import pytest

from loadtest.scale.acts import zipf
from loadtest.scale.hits import lru_hit_rate
from loadtest.scale.tier import Held, Tier


def test_the_least_recently_used_go_first() -> None:
    tier = Tier(30)
    for user in range(3):
        tier.put(user, Held(0, 5, 10))
    assert tier.get(0, 0) == Held(0, 5, 10)
    tier.put(3, Held(0, 5, 10))
    assert [tier.get(user, 0) is not None for user in range(4)] == [True, False, True, True]
    assert (tier.num_bytes, tier.num_evicted, len(tier)) == (30, 1, 3)


def test_a_state_takes_the_place_of_the_former_one() -> None:
    tier = Tier(30)
    tier.put(0, Held(0, 5, 10))
    tier.put(0, Held(0, 9, 20))
    assert (tier.num_bytes, len(tier), tier.num_evicted) == (20, 1, 0)


def test_a_state_of_another_window_is_none() -> None:
    tier = Tier(30)
    tier.put(0, Held(0, 5, 10))
    assert tier.get(0, 512) is None


def test_a_state_larger_than_the_budget_is_not_kept() -> None:
    tier = Tier(30)
    tier.put(0, Held(0, 5, 10))
    tier.put(0, Held(0, 50, 100))
    assert (tier.num_bytes, len(tier), tier.num_evicted) == (0, 0, 1)


@pytest.mark.parametrize("exponent", [0.8, 1.0])
@pytest.mark.parametrize("kept", [50, 300])
def test_the_hit_rate_is_that_of_che(exponent: float, kept: int) -> None:
    """Of independent visits by Zipf's law: Che's approximation is known to be within a few thousandths."""
    shares = zipf(2_000, exponent)
    tier, hits, seen = Tier(kept), 0, 0
    for turn, user in enumerate(np.random.default_rng(5).choice(2_000, 40_000, p=shares).tolist()):
        if turn >= 10_000:
            hits, seen = hits + (tier.get(user, 0) is not None), seen + 1
        else:
            tier.get(user, 0)
        tier.put(user, Held(0, 1, 1))
    assert hits / seen == pytest.approx(lru_hit_rate(shares, kept), abs=0.015)  # 5 deviations of 30,000 visits

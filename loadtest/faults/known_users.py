"""Users whose histories a server is given, to be ranked and checked against."""

import secrets
import time

import numpy as np

from loadtest.faults.oracle import Life
from loadtest.load.messages import append_message
from mfalcon.types import EVENT_DTYPE
from proto.ranking_pb2_grpc import RankingStub


async def known_users(
    stub: RankingStub, num_users: int, num_events: int, num_items: int, seed: int, timeout_s: float
) -> dict[str, Life]:
    """What each of them has done, by names that no other run has: so many events, a second apart, of items from 1 to
    num_items at random.
    """
    rng, lives, run = np.random.default_rng(seed), dict[str, Life](), secrets.token_hex(4)
    now = time.time_ns() // 1_000_000
    for number in range(num_users):
        events = np.zeros(num_events, dtype=EVENT_DTYPE)
        events["item_id"] = rng.integers(1, num_items + 1, num_events)
        events["actions"], events["value"] = 1, rng.integers(1, 6, num_events)
        events["time_ms"] = now - 10**9 + np.arange(num_events) * 1_000
        user = f"user-{run}-{number}"
        await stub.AppendEvents(append_message(user, events, 0), timeout=timeout_s)
        lives[user] = Life()
        lives[user].add(events)
    return lives

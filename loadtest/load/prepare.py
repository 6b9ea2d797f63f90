"""What a class asks, made before the load: users with histories, serialized requests, the scores of a cold oracle."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.load.own_users import OwnUsers
from loadtest.load.target import Scored, Target
from loadtest.load.traffic import Traffic
from mfalcon.types import EVENT_DTYPE, Events, Floats, Ids

_DAY_MS = 86_400_000
_EVENTS_PER_APPEND = 5_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """One user's request. oracle: what the server answered before the load, when it had no state of the user.

    user_id: who has the history already; a cold request is for a new user, with the same history.
    """

    user_id: str
    append_bodies: tuple[bytes, ...]
    rank_body: bytes
    oracle: Scored

    def gap(self, scores: Floats) -> float:
        """The worst difference from the oracle's scores, without bound if they cannot be compared."""
        if len(scores) != len(self.oracle.scores):
            return float("inf")
        gap = float(np.abs(scores - self.oracle.scores).max(initial=0.0))
        return gap if np.isfinite(gap) else float("inf")


async def prepare(
    target: Target, users: OwnUsers, traffic: Traffic, item_ids: Ids, num_actions: int, rng: np.random.Generator
) -> list[Prepared]:
    """Append a history for each user and rank once, which leaves a state of it and is the oracle. Raises CallFailed."""
    now_ms = time.time_ns() // 1_000_000
    prepared = []
    for _ in range(traffic.num_users):
        events = _history(traffic.history, item_ids, num_actions, now_ms, rng)
        chunks = [events[at : at + _EVENTS_PER_APPEND] for at in range(0, len(events), _EVENTS_PER_APPEND)]
        append_bodies = tuple(map(target.append_body, chunks))
        rank_body = target.rank_body(rng.choice(item_ids, traffic.candidates), now_ms)
        user_id = await users.create(append_bodies)
        prepared.append(Prepared(user_id, append_bodies, rank_body, await target.rank(user_id, rank_body, None)))
        if traffic.cold_share == 1:
            await users.delete(user_id)
    return prepared


def unknown_share(prepared: Sequence[Prepared]) -> float:
    """Of the candidates, which the model does not know."""
    num_candidates = sum(len(each.oracle.scores) for each in prepared)
    return sum(each.oracle.num_unknown for each in prepared) / max(1, num_candidates)


def _history(length: int, item_ids: Ids, num_actions: int, now_ms: int, rng: np.random.Generator) -> Events:
    """Events of the last day, in order."""
    events = np.zeros(length, dtype=EVENT_DTYPE)
    events["item_id"] = rng.choice(item_ids, length)
    events["actions"] = 1 << rng.integers(0, max(1, num_actions), length)
    events["value"] = 3.0
    events["time_ms"] = now_ms - _DAY_MS + np.arange(length)
    return events

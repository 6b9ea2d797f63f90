"""Faults in a seeded order: Redis is killed or frozen for a moment, a server is killed and comes back.

Each round has one of every kind.
"""

import threading
from collections import Counter
from itertools import count
from typing import Protocol

import numpy as np

from loadtest.faults.fleet import Fleet

MEAN_GAP_S = 10.0
KINDS = ("kill_redis", "freeze_redis", "kill_server")


class Redis(Protocol):
    """What is done to the Redis server."""

    def kill(self) -> None:
        """SIGKILL."""

    def start(self) -> None:
        """Start it again on its port and its files."""

    def freeze(self) -> None:
        """Stop it where it is: connections stay, nothing is answered."""

    def thaw(self) -> None:
        """Let it go on."""


def inject(
    redis: Redis, fleet: Fleet, seed: int, stop: threading.Event, mean_gap_s: float = MEAN_GAP_S
) -> Counter[str]:
    """Inject one fault after another until `stop`; every one is lifted before this returns. Counts them by kind."""
    rng = np.random.default_rng(seed)
    done: Counter[str] = Counter()
    order = (KINDS[number] for _ in count() for number in rng.permutation(len(KINDS)))
    while not stop.wait(mean_gap_s * rng.uniform(0.5, 1.5)):
        kind = next(order)
        match kind:
            case "kill_redis":
                redis.kill()
                stop.wait(rng.uniform(0.5, 2.0))
                redis.start()
            case "freeze_redis":
                redis.freeze()
                stop.wait(rng.uniform(0.2, 3.0))
                redis.thaw()
            case "kill_server":
                number = int(rng.integers(len(fleet.targets)))
                fleet.kill(number)
                fleet.start(number)
        done[kind] += 1
    return done

"""Which replica a user's requests go to: a consistent ring with bounded load, as balancers have it.

The points of a replica and the place of a key are XXH64 of their names, as in Envoy's RING_HASH. When a replica goes,
its users alone move, each to the next point. A replica that has its share of the requests under way takes no more, and
the next one does (Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2018); Envoy, which bounds
load alike, goes to a random other one instead.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import xxhash

POINTS = 1024
"""Of a replica: its part of the ring is then within about a tenth of 1/N, three standard deviations."""


class Ring:
    """Replicas by number, in the order of their names."""

    def __init__(self, names: Sequence[str], points: int = POINTS) -> None:
        placed = sorted(
            (_place(f"{name}_{point}"), number) for number, name in enumerate(names) for point in range(points)
        )
        self._places = [place for place, _ in placed]
        self._owners = [number for _, number in placed]
        self._size = len(names)

    def walk(self, key: str) -> Iterator[int]:
        """Every replica once, the nearest to the key first."""
        at = bisect_left(self._places, _place(key))
        seen: set[int] = set()
        for step in range(len(self._owners)):
            number = self._owners[(at + step) % len(self._owners)]
            if number not in seen:
                seen.add(number)
                yield number
                if len(seen) == self._size:
                    return

    def owner(self, key: str, takes: Callable[[int], bool] = lambda _: True) -> int | None:
        """The nearest replica that takes the key."""
        return next(filter(takes, self.walk(key)), None)


def most_in_flight(factor: float, in_flight: int, num_replicas: int) -> int:
    """Requests that one replica may have under way once one more has come: `factor` times its share of all.

    factor: infinite for no bound, else at least 1.
    """
    if factor == math.inf:
        return in_flight + 1
    return math.ceil(factor * (in_flight + 1) / max(1, num_replicas))


def _place(name: str) -> int:
    return xxhash.xxh64_intdigest(name.encode())

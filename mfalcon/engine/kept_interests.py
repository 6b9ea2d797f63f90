"""Interests that were computed ahead, by a prefill while retrieval runs: of one model, one user and one exact history.

What is kept is used for that history alone: its version, the chained hash of its events, is part of the key, so what
was computed before an append is never used after it.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfalcon.history.history import History
from mfalcon.types import Floats

MOST_BYTES = 64 << 20
MOST_AGE_MS = 60_000
"""By the times of the requests: an interest depends a little on when it is asked."""
_OVERHEAD = 512


@dataclass(frozen=True, slots=True)
class _Kept:
    version: bytes
    generation: bytes
    time_ms: int
    vectors: Mapping[str, Floats]

    @property
    def num_bytes(self) -> int:
        return _OVERHEAD + sum(len(name) + vector.nbytes for name, vector in self.vectors.items())


class KeptInterests:
    """The newest of each user and model, those that were not used for longest given up first. On one event loop."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[bytes, str], _Kept] = OrderedDict()
        self.num_bytes = 0

    def put(self, model: str, history: History, time_ms: int, conditions: Sequence[str], vectors: Floats) -> None:
        """Keep interests [num_conditions, dim] of a history. model: names the checkpoint too."""
        key = history.user, model
        self._drop(key)
        kept = _Kept(history.version, history.generation, time_ms, dict(zip(conditions, vectors, strict=True)))
        self._kept[key] = kept
        self.num_bytes += kept.num_bytes
        while self.num_bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def get(self, model: str, history: History, time_ms: int, names: Sequence[str]) -> Floats | None:
        """Those of these conditions [len(names), dim], if they are of this history and not too old."""
        key = history.user, model
        kept = self._kept.get(key)
        if kept is None or (kept.version, kept.generation) != (history.version, history.generation):
            return None
        if not 0 <= time_ms - kept.time_ms <= MOST_AGE_MS or not all(name in kept.vectors for name in names):
            return None
        self._kept.move_to_end(key)
        return np.stack([kept.vectors[name] for name in names])

    def delete(self, user: bytes | None) -> None:
        """Those of a user, by hash, or of everybody."""
        for key in [key for key in self._kept if user is None or key[0] == user]:
            self._drop(key)

    def _drop(self, key: tuple[bytes, str]) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self.num_bytes -= kept.num_bytes

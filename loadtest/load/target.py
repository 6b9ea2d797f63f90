"""The server under load as its driver sees it; bodies are serialized once, before the load begins."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mfalcon.types import NO_SCORE, Events, Floats, Ids

SETUP_TIMEOUT_S = 60.0
"""Of calls before and after the load."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a driver must know of the served model. max_candidates: 0 where the server does not say."""

    name: str
    version: str
    backend: str
    max_candidates: int
    num_actions: int


@dataclass(frozen=True, slots=True)
class Scored:
    """An answered rank. num_encoded: tokens that no KV state held. num_unknown: candidates that the model lacks."""

    scores: Floats
    num_encoded: int
    num_unknown: int
    version: str

    @property
    def is_finite(self) -> bool:
        """Whether the model gives a finite number for every candidate."""
        return bool(np.isfinite(self.scores).all() and (self.scores != NO_SCORE).all())


class Target(Protocol):
    """Every call raises CallFailed with the status that the server answered, or UNAVAILABLE where nobody listens."""

    def rank_body(self, candidates: Ids, request_time_ms: int) -> bytes:
        """A rank without its user."""
        ...

    def append_body(self, events: Events) -> bytes:
        """An append without its user."""
        ...

    async def model(self) -> ServedModel:
        """The default model."""
        ...

    async def rank(self, user_id: str, body: bytes, timeout_s: float | None) -> Scored:
        """timeout_s: what the server is told; the caller itself waits until it is answered or cancelled."""
        ...

    async def append(self, user_id: str, body: bytes) -> None:
        """Events to the end of the user's history."""
        ...

    async def delete(self, user_id: str) -> None:
        """Forget the user."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...

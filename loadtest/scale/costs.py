"""What the parts of a request cost, as `mfalcon bench scale-costs` measures them; seconds are CPU seconds of one core.

CPU time and not time: it is what a machine has a fixed amount of, and a neighbour changes it little.
"""

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mfalcon.errors import ConfigError
from mfalcon.kvcache.block_pool import small_page_tokens
from mfalcon.window import WindowRule

Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Curve = Annotated[tuple[tuple[Count, Seconds], ...], Field(min_length=1)]
"""Seconds at some numbers of tokens, ascending: a straight line between two of them and beyond the last two, the first
one's before it.
"""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Costs:
    """Of one server that computes on one core, for one checkpoint.

    encode: of each token of a state that is made of so many, from nothing, so that what grows with the square is a
    line. extend_s: of a call that encodes behind a state, beside that. call, candidate: of scoring against so many
    tokens, and of each candidate of it. host_s: what else a rank costs, in the event loop. append_s, append_event_s: of
    a call that appends, and of an event in it. log_s, append_log_s: what a log in Redis adds to a rank and to an
    append. fetch_s, store_s: of moving a state out of Redis or into it, for the server; fetch_byte_s, store_byte_s: of
    each byte of it. redis_s, redis_byte_s: of a call and of a byte for Redis itself. client_s: of a rank for who asks,
    on the same machine.
    latency_s, bandwidth: of the network to Redis, in seconds and bytes a second.
    page_tokens, page_bytes: of the block pool. redis_token_bytes, chunk_tokens: of a state in Redis.
    max_history, window_chunk: of the model.
    """

    model: str
    machine: str
    commit: str
    encode: Curve
    extend_s: Seconds
    call: Curve
    candidate: Curve
    host_s: Seconds
    append_s: Seconds
    append_event_s: Seconds
    log_s: Seconds
    append_log_s: Seconds
    fetch_s: Seconds
    fetch_byte_s: Seconds
    store_s: Seconds
    store_byte_s: Seconds
    redis_s: Seconds
    redis_byte_s: Seconds
    client_s: Seconds
    latency_s: Seconds
    bandwidth: Annotated[float, Field(gt=0)]
    page_tokens: Count
    page_bytes: Count
    redis_token_bytes: Count
    chunk_tokens: Count
    max_history: Count
    window_chunk: Count

    def encode_s(self, before: int, new: int) -> float:
        """Encoding new tokens behind those of a state; nothing for nothing new."""
        if new <= 0:
            return 0.0
        tokens = before + new
        seconds = tokens * at(self.encode, tokens) - before * at(self.encode, before)
        return max(0.0, seconds) + (self.extend_s if before else 0.0)

    def score_s(self, tokens: int, candidates: int) -> float:
        """Scoring candidates against a state."""
        return at(self.call, tokens) + candidates * at(self.candidate, tokens)

    def fetch_cpu_s(self, tokens: int) -> float:
        """The server's own part of fetching a state."""
        return self.fetch_s + self.redis_bytes(tokens) * self.fetch_byte_s if tokens > 0 else 0.0

    def store_cpu_s(self, num_bytes: int) -> float:
        """The server's part of writing so many bytes of a state; nothing for nothing to write."""
        return self.store_s + num_bytes * self.store_byte_s if num_bytes > 0 else 0.0

    def travel_s(self, tokens: int) -> float:
        """From asking Redis for a state to its last byte, not counting anybody's CPU."""
        return self.latency_s + self.redis_bytes(tokens) / self.bandwidth

    def fetch_wins(self, held: int, stored: int, tokens: int) -> bool:
        """Whether to fetch a state of which Redis has more than the server holds, as the server's planner decides."""
        if stored <= held:
            return False
        fetch = self.travel_s(stored) + self.fetch_cpu_s(stored) + self.encode_s(stored, tokens - stored)
        return fetch < self.encode_s(held, tokens - held)

    def pool_bytes(self, tokens: int) -> int:
        """Of a state in the block pool: whole pages, or of a short one small ones."""
        small = small_page_tokens(self.page_tokens)
        size = self.page_tokens if small is None or tokens > self.page_tokens - small else small
        return -(-tokens // size) * (self.page_bytes * size // self.page_tokens)

    def redis_bytes(self, tokens: int) -> int:
        """Of a state in Redis."""
        return tokens * self.redis_token_bytes

    def written_bytes(self, before: int, tokens: int) -> int:
        """What is written to Redis of a state of which it has so many tokens: the last chunk that it has is written
        again.
        """
        return self.redis_bytes(tokens - before // self.chunk_tokens * self.chunk_tokens) if tokens > before else 0

    @property
    def window(self) -> WindowRule:
        """Which part of a history is encoded."""
        return WindowRule(self.max_history, self.window_chunk)


def at(curve: Curve, tokens: int) -> float:
    """Seconds of a curve at a number of tokens."""
    (low, low_s), *rest = curve
    if tokens <= low or not rest:
        return low_s
    high, high_s = rest[0]
    for next_tokens, next_s in rest[1:]:
        if tokens <= high:
            break
        (low, low_s), (high, high_s) = (high, high_s), (next_tokens, next_s)
    return max(0.0, low_s + (high_s - low_s) * (tokens - low) / (high - low))


_ADAPTER = TypeAdapter(Costs)


def load_costs(path: Path) -> Costs:
    """Raises ConfigError for a file that is none."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: no costs of requests: {error}") from None


def as_json(costs: Costs) -> str:
    """What `load_costs` reads."""
    return _ADAPTER.dump_json(costs, indent=2).decode() + "\n"

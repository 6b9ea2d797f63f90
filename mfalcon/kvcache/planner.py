"""Which way to a KV state is the quicker one, for a request: the costs, put together as the request would pay them."""

import math
from dataclasses import dataclass, field

from mfalcon.kvcache.cost import NOTHING, EncodeCost, Estimate, ScoreCost, TransferCost
from mfalcon.kvcache.decision import Decision, decide
from mfalcon.pairs import Pairs

_LEAST_COVERAGE = 0.05


@dataclass(frozen=True, slots=True)
class Situation:
    """What a request finds. Tokens are counted from the start of the window.

    redis_tokens: None when Redis cannot be asked. fetch_bytes: what a fetch would move. wait: for the device.
    time_left: seconds to the deadline, None without one. patience: seconds that the request may wait for Redis.
    """

    history_tokens: int
    host_tokens: int
    redis_tokens: int | None
    fetch_bytes: int
    wait: Estimate = NOTHING
    time_left: float | None = None
    patience: float = math.inf


class Coverage:
    """How much of a wanted state Redis has been holding lately: a fraction that moves with each fetch."""

    def __init__(self) -> None:
        self.fraction = 1.0

    def observe(self, fraction: float) -> None:
        """A fetch brought so much of what it asked for."""
        self.fraction = max(_LEAST_COVERAGE, 0.8 * self.fraction + 0.2 * fraction)


def _decoding() -> TransferCost:
    return TransferCost(latency_seconds=0.1e-3, bytes_per_second=2e9)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Owns the costs; whoever does the work tells them how long it took.

    coverage: told of each fetch.

    Threads: the device thread and workers observe while the event loop predicts; each cost sees to that itself. Two
    costs read in one decision may be an observation apart, which is as good.
    """

    encode: EncodeCost = field(default_factory=EncodeCost)
    score: ScoreCost = field(default_factory=ScoreCost)
    fetch: TransferCost = field(default_factory=TransferCost)
    decode: TransferCost = field(default_factory=_decoding)
    coverage: Coverage = field(default_factory=Coverage)

    @classmethod
    def of(cls, pairs: Pairs) -> "Predictor":
        """Of a model whose layers see this much."""
        return cls(encode=EncodeCost(pairs=pairs), score=ScoreCost(pairs=pairs))

    def decide(self, at: Situation) -> Decision:
        """Bytes travel while the request waits for the device; they are decoded, and the rest encoded, after both."""
        recompute = at.wait + self.encode.predict(at.host_tokens, at.history_tokens - at.host_tokens)
        if at.redis_tokens is None:
            return decide(None, recompute, at.time_left, without_fetch="redis unavailable")
        if at.redis_tokens <= at.host_tokens:
            return decide(None, recompute, at.time_left)
        transfer = self.fetch.predict(at.fetch_bytes)
        if transfer.seconds > at.patience:
            return decide(None, recompute, at.time_left, without_fetch="takes too long")
        fetch = (
            at.wait.beside(transfer)
            + self.decode.predict(at.fetch_bytes)
            + self.encode.predict(at.redis_tokens, at.history_tokens - at.redis_tokens)
        )
        return decide(fetch, recompute, at.time_left)

    def expected_fetch_wins(self, num_tokens: int, num_bytes: int) -> bool:
        """Whether to fetch a state of `num_tokens` tokens, all other things equal: to start before more is known."""
        fetch = self.fetch.predict(num_bytes).seconds + self.decode.predict(num_bytes).seconds
        return fetch < self.encode.predict(0, num_tokens).seconds

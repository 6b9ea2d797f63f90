"""The KV states of one model in Redis: their chunks, and what writes them behind the requests' backs."""

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass

from mfalcon.history.tombstones import Tombstones
from mfalcon.kvcache.chunk import Layout, PayloadDtype
from mfalcon.kvcache.codec import encode, exact_dtype
from mfalcon.kvcache.remote import RedisStates
from mfalcon.kvcache.state import KVState
from mfalcon.kvcache.write_behind import WriteBehind
from mfalcon.metrics import StateMetrics
from mfalcon.models.base import Ranker
from mfalcon.redis.client import RedisClient
from mfalcon.redis.keys import Keys

_DRAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """dtype: of the payloads, None for the compute dtype. log_is_here: whether the event log is in the same Redis.
    budget_bytes: of states that wait to be written.
    """

    dtype: PayloadDtype | None
    ttl_s: float
    log_is_here: bool
    secret: bytes | None
    budget_bytes: int
    write_timeout_s: float


class RemoteTier:
    """The chunks of one model, on the server's connections. Lives on the event loop."""

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        workers: Executor,
        model: Ranker,
        fingerprint: str,
        options: RemoteOptions,
        tombstones: Tombstones,
        metrics: StateMetrics,
    ) -> None:
        per_event, layout = model.tokens_per_event, layout_of(model, fingerprint, options.dtype)
        self.states = RedisStates(
            client,
            keys,
            layout,
            metrics,
            max_events=model.config.max_history,
            ttl_s=options.ttl_s,
            log_is_here=options.log_is_here,
            secret=options.secret,
        )

        def payload(state: KVState, first: int, stop: int) -> memoryview:
            return encode(state, first * per_event, stop * per_event, layout.dtype)

        self.writes: WriteBehind[KVState] = WriteBehind(
            self.states,
            payload,
            tombstones,
            metrics,
            workers,
            budget_bytes=options.budget_bytes,
            timeout_s=options.write_timeout_s,
        )

    async def close(self) -> None:
        """Write what waits, as far as that is quick."""
        await self.writes.close(_DRAIN_SECONDS)


def layout_of(model: Ranker, fingerprint: str, dtype: PayloadDtype | None = None) -> Layout:
    """How the chunks of a model's states lie. fingerprint: of the checkpoint and the compute dtype, any text.

    dtype: None for the compute dtype.
    """
    shape = model.kv_shape()
    return Layout(
        fingerprint=hashlib.blake2b(fingerprint.encode(), digest_size=16).digest(),
        tokens_per_event=model.tokens_per_event,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        qk_dim=shape.qk_dim,
        v_dim=shape.v_dim,
        dtype=dtype or exact_dtype(shape.dtype),
    )

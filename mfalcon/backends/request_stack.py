"""The layers of a model whose keys and values are of one request, computed by a stack backend: they lie on pages that
are free again when the request ends.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mfalcon.backends.base import StackBackend
from mfalcon.kvcache.state import KVPool, KVShape, KVState
from mfalcon.models.base import EventSide, EventTokens, Targets
from mfalcon.models.dlrm_v3 import DlrmV3


@dataclass(frozen=True, slots=True)
class _Read:
    """The prefix of one request, and its time."""

    state: KVState
    num_events: int
    time_ms: int


class RequestStack:
    """A `Reader` as `DlrmReader` is, whose layers are a backend's. Several threads may use one."""

    def __init__(self, model: DlrmV3, stack: StackBackend) -> None:
        self._model, self._stack, self._pool = model, stack, KVPool(stack.layout)

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        model = self._model
        tokens = model.prefix_tokens(events, context, model.now_s(time_ms), model.lengths)
        state, num = self._pool.empty().grown(len(tokens)), len(tokens)
        self._stack.encode([state], tokens, [num], torch.zeros(num, dtype=torch.int64, device=tokens.device))
        return _Read(state, len(events.rows), time_ms)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        assert isinstance(side, _Read)
        tokens = self._model.target_tokens(targets)
        hidden = self._stack.hidden([side.state], tokens, [len(tokens)], [side.time_ms], microbatch)
        return self._model.predict(hidden, targets, self._model.now_s(side.time_ms))


def shape_of(model: DlrmV3) -> KVShape:
    """What the prefix of a request needs per token."""
    layer, num_layers = model.config.stack
    return KVShape(num_layers, layer.num_heads, layer.qk_dim, layer.v_dim, model.dtype, model.device)

"""The contract of a ranker: what the algorithm, the trainer and the engine may ask of any model.

A model turns events into prefix tokens and candidates into targets, and reads scores off targets. It knows nothing of
caches, microbatches or requests.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from kernels.paged import to_device
from mfalcon.kvcache.state import KVShape
from mfalcon.models.config import ContextFeature, RankerConfig
from mfalcon.models.dense_features import DenseEmbedding
from mfalcon.models.embedding import ActionEmbedding, ContextEmbedding, ItemEmbedding
from mfalcon.models.heads import TaskHeads
from mfalcon.models.items import ItemTable
from mfalcon.models.layer import Stack
from mfalcon.types import Events, Ids

MISSING = -1
"""Code of a context feature that the caller did not give."""


@dataclass(frozen=True, slots=True)
class EventTokens:
    """Events as the model reads them, before embedding. Every tensor is [..., num_events]."""

    rows: Tensor
    actions: Tensor
    values: Tensor
    times: Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """Candidates as the model reads them: item rows [..., num_targets], context codes [..., num_features], and their
    standardised dense features [..., num_targets, num_dense_features], None where none are given.
    """

    rows: Tensor
    context: Tensor
    dense: Tensor | None = None

    def part(self, index: Tensor | slice) -> "Targets":
        """Those at some positions, with the context that all share."""
        return Targets(self.rows[index], self.context, None if self.dense is None else self.dense[index])


class Ranker(nn.Module, ABC):
    """Base of every model: embeddings, a stack of layers and heads. A subclass says how they become tokens."""

    tokens_per_event: int
    """Prefix tokens that one event becomes."""
    prefix_stable: bool
    """True when a token's K/V depend on itself and earlier tokens alone, so that states may outlive their request."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.layer.dim
        self.items = ItemEmbedding(config.num_items, dim, config.side_features)
        self.actions = ActionEmbedding(len(config.actions), dim, config.value_center, config.value_scale)
        self.context = ContextEmbedding(config.context_features, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config.layer, config.num_layers)
        self.heads = TaskHeads(config.tasks, dim, config.head_dim, config.num_items, config.dropout)
        self.dense = DenseEmbedding(len(config.dense_inputs), config.dense_dim, dim)

    @abstractmethod
    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """[..., num_events] -> [..., num_events * tokens_per_event, dim]."""

    @abstractmethod
    def target_tokens(self, targets: Targets) -> Tensor:
        """[..., num_targets] -> [..., num_targets, dim]. Context and dense features join later, in `predict`."""

    def token_times(self, events: EventTokens) -> Tensor:
        """Event time of every prefix token: int64 [..., num_events * tokens_per_event]."""
        return events.times.repeat_interleave(self.tokens_per_event, dim=-1)

    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden targets [..., dim], their context and dense features -> raw task outputs [..., num_tasks] (logits of
        binary tasks).
        """
        raw: Tensor = self.heads(
            self.heads.widened(hidden + self.context(targets.context)) + self.dense(targets.dense), targets.rows
        )
        return raw

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in a dtype from now on; heads and dense features stay at float32 or above."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.heads.float()
            self.dense.float()

    def kv_shape(self) -> KVShape:
        """What a KV state of this model needs."""
        layer, weight = self.config.layer, self.items.id.weight
        return KVShape(self.config.num_layers, layer.num_heads, layer.qk_dim, layer.v_dim, weight.dtype, weight.device)


def event_tokens(events: Events, items: ItemTable, device: torch.device) -> EventTokens:
    """Events [num_events] of one user as tensors."""
    columns = (
        items.rows(np.ascontiguousarray(events["item_id"])),
        events["actions"].astype(np.int64),
        events["value"].astype(np.float64),
        np.ascontiguousarray(events["time_ms"]),
    )
    return EventTokens(*(to_device(column, device) for column in columns))


def context_codes(features: tuple[ContextFeature, ...], context: Mapping[str, int], time_ms: int) -> Ids:
    """Codes of a request's context, int64 [num_features]; derived features are filled in, absent ones are MISSING."""
    codes = np.full(len(features), MISSING, dtype=np.int64)
    for index, feature in enumerate(features):
        if feature.name in context:
            codes[index] = context[feature.name]
        elif feature.derive == "hour_utc":
            codes[index] = time_ms // 3_600_000 % 24
    return codes

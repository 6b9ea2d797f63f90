"""The contract of a ranker: what the algorithm, the trainer and the engine may ask of any model.

A model is one of two kinds. A `PrefixRanker` turns events into prefix tokens and what it is asked into targets: a
`TaskRanker` reads scores of items off them, another one vectors. An `EventRanker` reads the last events with each
request. Neither knows of caches or requests.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kernels.cpu.library import Kernel
from kernels.paged import to_device
from mfalcon.errors import ConfigError
from mfalcon.kvcache.state import KVShape
from mfalcon.masked_attention import BatchPrefixAttention, BatchTargetAttention
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import ContextFeature
from mfalcon.models.dense_features import DenseEmbedding
from mfalcon.models.embedding import ActionEmbedding, ContextEmbedding, ItemEmbedding
from mfalcon.models.graph_network import GraphNetwork
from mfalcon.models.heads import TaskHeads, blend_weights, task_scores
from mfalcon.models.items import KnownItems
from mfalcon.models.layer import HSTULayer, Stack
from mfalcon.types import Events, Ids

MISSING = -1
"""Code of a context feature that the caller did not give."""


@dataclass(frozen=True, slots=True)
class EventTokens:
    """Events as the model reads them, before embedding. Every tensor is [..., num_events]. rows: of the items, or their
    ids in an open vocabulary (`ItemTable.keys`).
    """

    rows: Tensor
    actions: Tensor
    values: Tensor
    times: Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """Candidates as the model reads them: rows [..., num_targets] of items, or of conditions, context codes [...,
    num_features], and their standardised dense features [..., num_targets, num_dense_features], None where none are
    given.
    """

    rows: Tensor
    context: Tensor
    dense: Tensor | None = None

    def part(self, index: Tensor | slice) -> "Targets":
        """Those at some positions, with the context that all share."""
        return Targets(self.rows[index], self.context, None if self.dense is None else self.dense[index])


class Ranker(nn.Module, ABC):
    """What every model has: items, tasks and raw outputs of targets. How it reads a history makes it one of two kinds:
    a `PrefixRanker` or an `EventRanker`.
    """

    encodes_prefix: bool
    """Whether a history becomes a KV state that candidates are scored against."""
    prefix_stable: bool
    """True when a token's K/V depend on itself and earlier tokens alone, so that states may outlive their request."""
    ranks_items = True
    """Whether its targets are items and its outputs their scores."""
    has_layers: bool
    """Whether it is a stack of layers, which its configuration then says."""
    config_part: str | None = None
    """Field of its configuration that tells what is around the layers, if it has one; no other model may have it."""
    is_trained_here = True
    """Whether `mfalcon train` has a recipe for it; one that has none comes from elsewhere."""
    why_no_states = "no state outlives its request"
    """Said of a model that is not prefix-stable."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.items = ItemEmbedding(config.num_items, config.dim, config.side_features, config.shared)
        self.dropout = nn.Dropout(config.dropout)
        self.graph: GraphNetwork | None = None
        if config.graph is not None:
            self.graph = GraphNetwork(config.graph, config.num_items, config.dim, config.side_features)

    @abstractmethod
    def outputs(self, events: EventTokens, valid: Tensor, targets: Targets, visible: Tensor, times: Tensor) -> Tensor:
        """Raw task outputs of the targets of a padded batch, with gradients: [batch, m, num_tasks].

        events: [batch, n]. valid: bool [batch, n], False on padding (at the end). targets: [batch, m], of which each
        sees the first `visible` events of its row, int64 [batch, m], at its request's time, int64 [batch, m].
        """

    @abstractmethod
    def rescale(self, task: int, scale: float, shift: float) -> None:
        """Make a task's raw output scale * raw + shift from now on."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> None:
        """Compute in a dtype from now on; heads stay at float32 or above."""

    def scores(self, raw: Tensor) -> Tensor:
        """Raw outputs -> scores [..., num_tasks]: probabilities (binary), values (regression)."""
        return task_scores(self.config.tasks, raw)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of each number that a target is given."""
        return tuple(task.name for task in self.config.tasks)

    @property
    def blend(self) -> list[float]:
        """Weight of each of them in the one score that ranks."""
        return blend_weights(self.config.tasks, self.config.blend)

    @property
    def num_target_rows(self) -> int:
        """Rows that a target may have, from 0 on (`RankerConfig.num_keys`)."""
        return self.config.num_keys

    def target_rows(self, items: KnownItems, ids: Ids) -> Ids:
        """Rows of what a request asks for by its id, [num_targets] (`ItemTable.keys`)."""
        return items.keys(ids)

    def parameters_in_logits(self) -> list[nn.Parameter]:
        """Weights that are logits themselves, and must travel further than others while they are learned."""
        return []

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.items.id.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, heads apart."""
        return self.items.id.weight.dtype


class PrefixRanker(Ranker):
    """A model that encodes a history into a KV state: a stack of layers between embeddings and what is read off its
    targets. A subclass says how events and candidates become tokens.
    """

    encodes_prefix = True
    has_layers = True
    tokens_per_event: int
    """Prefix tokens that one event becomes."""
    multiplies_tokens = False
    """Whether prefix tokens are products, whose rounding depends on how many are made at once. Else a state is the same
    to the bit however its history was cut, where layers are (law 7).
    """
    reads_positions = False
    """Whether tokens depend on where they stand, counted from the start of the window: see `placed`."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.actions = action_embedding(config)
        self.stack = Stack(*config.stack, config.reach)

    @abstractmethod
    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """[..., num_events] -> [..., num_events * tokens_per_event, dim]."""

    @abstractmethod
    def target_tokens(self, targets: Targets) -> Tensor:
        """[..., num_targets] -> [..., num_targets, dim]. Context and dense features join later, in `predict`."""

    def placed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Prefix tokens [..., n, dim] at positions, int64 [..., n]. Only a model that reads positions is asked."""
        return tokens

    def placed_targets(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Targets [..., m, dim], each behind so many tokens of the prefix, int64 [..., m]; as `placed`."""
        return tokens

    def token_times(self, events: EventTokens) -> Tensor:
        """Event time of every prefix token: int64 [..., num_events * tokens_per_event]."""
        return events.times.repeat_interleave(self.tokens_per_event, dim=-1)

    def outputs(self, events: EventTokens, valid: Tensor, targets: Targets, visible: Tensor, times: Tensor) -> Tensor:
        """See `Ranker.outputs`. A prefill and a score."""
        per_event = self.tokens_per_event
        prefix = BatchPrefixAttention(self.token_times(events), valid.repeat_interleave(per_event, dim=-1))
        tokens, asked = self.prefix_tokens(events), self.target_tokens(targets)
        if self.reads_positions:
            tokens = self.placed(tokens, torch.arange(tokens.shape[-2], device=tokens.device))
            asked = self.placed_targets(asked, visible * per_event)
        self.stack.encode(tokens, prefix)
        attend = BatchTargetAttention(prefix, visible * per_event, times)
        return self.predict(self.stack(asked, attend), targets)

    @abstractmethod
    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden targets [..., dim] and what else is known of them -> raw outputs [..., num_outputs]."""

    def parameters_in_logits(self) -> list[nn.Parameter]:
        """See `Ranker.parameters_in_logits`: those of rab."""
        layers = [layer for layer in self.stack.layers if isinstance(layer, HSTULayer)]
        return [weight for layer in layers if layer.bias is not None for weight in layer.bias.parameters()]

    def kv_shape(self) -> KVShape:
        """What a KV state of this model needs."""
        layer, num_layers = self.config.stack
        return KVShape(num_layers, layer.num_heads, layer.qk_dim, layer.v_dim, self.dtype, self.device)


class TaskRanker(PrefixRanker):
    """A `PrefixRanker` of items: a target is a candidate, and heads read its score of every task."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.context = ContextEmbedding(config.context_features, config.dim)
        num_rows = config.num_items if config.shared is None else None
        self.heads = TaskHeads(config.tasks, config.dim, config.head_dim, num_rows, config.dropout)
        self.dense = DenseEmbedding(len(config.dense_inputs), config.dense_dim, config.dim)

    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden targets [..., dim], their context and dense features -> raw task outputs [..., num_tasks] (logits of
        binary tasks).
        """
        raw: Tensor = self.heads(
            self.heads.widened(hidden + self.context(targets.context)) + self.dense(targets.dense), targets.rows
        )
        return raw

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """See `Ranker.rescale`."""
        self.heads.rescale(task, scale, shift)

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`; dense features stay at float32 or above too."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.heads.float()
            self.dense.float()


class EventSide(Protocol):
    """What the candidates of one request of an `EventRanker` share, computed once."""

    @property
    def num_events(self) -> int:
        """Events that were read."""
        ...


class Reader(Protocol):
    """An `EventRanker` whose weights no longer change, as it serves."""

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """The last events [num_events, at most the window] of a user, and of a request the codes of its context
        [num_features] and its time.
        """
        ...

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """Raw task outputs [num_targets, num_tasks] of candidates, at most `microbatch` of them at once."""
        ...


class EventRanker(Ranker):
    """A model without a prefix: it reads the last events anew with each request, and nothing of a history is kept."""

    encodes_prefix = False
    prefix_stable = False
    has_layers = False
    why_no_states = "the model has no KV state"

    @abstractmethod
    def reader(self, kernel: Kernel | None = None) -> Reader:
        """What serves, of the weights as they are now. kernel: for products of fixed weights, of float32 on the CPU;
        torch's own where it is None.
        """


def action_embedding(config: RankerConfig) -> ActionEmbedding:
    """What the user did, as wide as an item."""
    return ActionEmbedding(len(config.actions), config.dim, config.value_center, config.value_scale)


def prefix_ranker(model: Ranker) -> PrefixRanker:
    """The model as one that encodes a history. Raises ConfigError for one that does not."""
    if not isinstance(model, PrefixRanker):
        raise ConfigError(
            f"{model.config.name}: architecture {model.config.architecture!r} encodes no history, it has no KV state"
        )
    return model


def event_tokens(events: Events, items: KnownItems, device: torch.device) -> EventTokens:
    """Events [num_events] of one user as tensors."""
    columns = (
        items.keys(np.ascontiguousarray(events["item_id"])),
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
        elif feature.unit_s is not None:
            codes[index] = time_ms // (1_000 * feature.unit_s) % feature.num_values
    return codes

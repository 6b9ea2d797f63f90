"""DIN: a DLRM-style ranker. It has no prefix: with each request it reads the user's last events, and each candidate
weighs them anew.

`din_network.py` has the network and its sources. Here is what goes into it: an event is its item and what the user did,
a candidate its item and its dense features, and the user the context of the request.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.cpu.library import Kernel
from mfalcon.models.base import EventRanker, EventSide, EventTokens, Reader, Targets, action_embedding
from mfalcon.models.config import RankerConfig
from mfalcon.models.din_fused import DinFused
from mfalcon.models.din_network import DinNetwork
from mfalcon.models.din_split import DinSplit, UserSide

_INIT_STD = 0.05
_FARTHEST = 16.0
"""Most standard deviations that a dense feature or the value of an event is read as: cross layers multiply what they
read, and have no norm that would bound it.
"""


class Din(EventRanker):
    """The network with embeddings of items, actions and context."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.actions = action_embedding(config)
        network = config.network
        self.context = nn.ModuleList(
            nn.Embedding(feature.num_values + 1, network.context_dim) for feature in config.context_features
        )
        for table in self.context_tables:
            nn.init.normal_(table.weight, std=_INIT_STD)
        self.network = DinNetwork(
            network,
            num_events=config.max_history,
            user_dim=network.context_dim * len(config.context_features),
            item_dim=config.dim * self._num_fields + len(config.dense_inputs),
            tower=config.head_dim,
            num_tasks=len(config.tasks),
            dropout=config.dropout,
        )

    @property
    def context_tables(self) -> list[nn.Embedding]:
        """A table for each context feature; its first row is that of a missing one."""
        return [table for table in self.context if isinstance(table, nn.Embedding)]

    def _widened(self, vectors: Tensor) -> Tensor:
        """In the dtype of the network."""
        return vectors.to(self.network.activation.linears[0].weight.dtype)

    @property
    def _num_fields(self) -> int:
        return 1 + len(self.config.side_features) * self.config.network.side_fields

    def event_vectors(self, events: EventTokens) -> Tensor:
        """[..., num_events] -> [..., num_events, dim]."""
        values = events.values
        if self.config.value_scale is not None:
            reach = _FARTHEST * self.config.value_scale
            values = values.clamp(self.config.value_center - reach, self.config.value_center + reach)
        return self._widened(self.dropout(self.items(events.rows)) + self.actions(events.actions, values))

    def user_vector(self, context: Tensor) -> Tensor:
        """Context codes [..., num_features], -1 for missing -> [..., user_dim]."""
        parts = [table(context[..., index] + 1) for index, table in enumerate(self.context_tables)]
        empty = self.items.id.weight.new_zeros((*context.shape[:-1], 0))
        return self._widened(torch.cat([empty, *parts], dim=-1))

    def item_fields(self, rows: Tensor) -> Tensor:
        """Item rows [...] -> [..., dim * num_fields]: the item's vector, which meets the events, and where they are
        fields of their own its side features.
        """
        whole: Tensor = self.items(rows)
        fields = self.items.side_vectors(rows) if self.config.network.side_fields else []
        return torch.cat([whole, *fields], dim=-1) if fields else whole

    def item_vectors(self, targets: Targets) -> Tensor:
        """Candidates [...] -> [..., item_dim]: fields and dense features, the latter 0 where none are given."""
        return self._with_dense(self._widened(self.dropout(self.item_fields(targets.rows))), targets.dense)

    def _with_dense(self, fields: Tensor, dense: Tensor | None) -> Tensor:
        """Fields [..., width] with the dense features [..., num_dense_features] of their candidates behind them."""
        num_dense = len(self.config.dense_inputs)
        if not num_dense:
            return fields
        if dense is None:
            return functional.pad(fields, (0, num_dense))
        return torch.cat([fields, dense.clamp(-_FARTHEST, _FARTHEST).to(fields.dtype)], dim=-1)

    def outputs(self, events: EventTokens, valid: Tensor, targets: Targets, visible: Tensor, times: Tensor) -> Tensor:
        """See `Ranker.outputs`. The network as its papers write it, each target with a copy of its user."""
        num_events = min(events.rows.shape[-1], self.config.max_history)
        index = visible.unsqueeze(-1) - num_events + torch.arange(num_events, device=visible.device)
        seen, batch, num = index >= 0, *targets.rows.shape
        of_row = torch.arange(batch, device=index.device).view(batch, 1, 1)
        read = self.event_vectors(events)[of_row, index.clamp(min=0)]
        user = self.user_vector(targets.context).expand(batch, num, -1)
        vectors = (user, read, seen, self.item_vectors(targets))
        raw: Tensor = self.network.plain(*(vector.flatten(0, 1) for vector in vectors)).unflatten(0, (batch, num))
        return raw

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """See `Ranker.rescale`."""
        last = self.network.towers.last
        with torch.no_grad():
            last.weight[task] *= scale
            last.bias[task] = scale * last.bias[task] + shift

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`: towers, and in float16 all of the network. Its cross layers multiply."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            (self.network if dtype == torch.float16 else self.network.towers).float()

    def reader(self, kernel: Kernel | None = None) -> Reader:
        """See `EventRanker.reader`."""
        return DinReader(self, kernel)


class DinReader:
    """The network split into what is the user's and what is each candidate's."""

    def __init__(self, model: Din, kernel: Kernel | None = None) -> None:
        self._model = model
        self._split = DinSplit(model.network) if kernel is None else DinFused(model.network, kernel)

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`; no time is read."""
        model = self._model
        return self._split.user_side(model.user_vector(context), model.event_vectors(events))

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        assert isinstance(side, UserSide)
        return self._split.raw(side, self._model.item_vectors(targets), microbatch)

"""Rows of items that go on learning while all other weights of a model stay: what deltas of a served table are made of.

The layers were trained with the rows of their checkpoint, and rows that are trained behind the same layers still mean
the same to them. Rows of another training run would not.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfalcon.errors import ConfigError
from mfalcon.items.delta import Delta
from mfalcon.models.base import EventRanker, Ranker, TaskRanker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.models.registry import build
from mfalcon.models.texts import Texts
from mfalcon.train.dataset import Dataset
from mfalcon.train.objectives import objective_of
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import Columns, grouped, windows_of

LEARNING_RATE = 0.03
"""Of Adagrad, which leaves rows without a gradient as they are. Chosen on validation events of MovieLens-100K."""
_FIRST_SQUARE = 1e-4
"""That its sums of squares begin with."""


class ItemRows:
    """Of a model that is served from a checkpoint, and of every item of a data set: one that the checkpoint does not
    know begins with the vector of the unknown item and its own side features.
    """

    def __init__(
        self, checkpoint: Checkpoint, dataset: Dataset, config: TrainConfig, learning_rate: float = LEARNING_RATE
    ) -> None:
        """config: batches, dropouts and the seed. Raises ConfigError for a model whose items have no rows."""
        if not isinstance(checkpoint.model, TaskRanker | EventRanker) or checkpoint.items.is_open:
            raise ConfigError(f"model: got {checkpoint.model.config.name!r}, must be one with a row for each item")
        self.model = widened(checkpoint, dataset.items)
        self._checkpoint, self._dataset, self._config = checkpoint, dataset, config
        self._trained = [self.model.items.id.weight, *([] if (bias := _bias_of(self.model)) is None else [bias])]
        for weight in self._trained:
            weight.requires_grad_(True)
        self._columns = Columns(dataset, self.model.config, config.visibility)
        self._objective = objective_of(self.model, dataset, self._columns, config)
        self._optimizer = torch.optim.Adagrad(self._trained, learning_rate, initial_accumulator_value=_FIRST_SQUARE)
        self._rng = np.random.default_rng(config.seed)
        self._generation = 0
        self._sent = [weight.detach().clone() for weight in self._trained]

    def learn(self, chosen: NDArray[np.bool_]) -> float:
        """One pass over these events, bool [num_events], each with the history before it; the mean loss of a batch."""
        self._generation += 1
        self.model.train()
        losses = []
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self._config.seed * 1_000_003 + self._generation)
            found = windows_of(self.model, self._dataset, chosen, self._config.visibility)
            for group in grouped(found, self._config.batch_size, self._rng):
                loss = self._objective.loss(self.model, self._columns.batch(group))
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
                losses.append(loss.item())
        self.model.eval()
        return float(np.mean(losses)) if losses else 0.0

    def delta(self, number: int) -> Delta:
        """The rows that have changed since the last delta, the first time also those of items that are new."""
        now = [weight.detach() for weight in self._trained]
        changed = torch.stack([(one != sent).any(1) for one, sent in zip(now, self._sent, strict=True)]).any(0)
        items = self._dataset.items
        if number == 1:
            changed[1:] |= torch.from_numpy(self._checkpoint.items.rows(items.item_id) == UNKNOWN_ROW)
        changed[UNKNOWN_ROW] = False  # which no item has
        self._sent = [weight.clone() for weight in now]
        rows = changed.nonzero()[:, 0]
        names = [feature.name for feature in self.model.config.side_features]
        return Delta(
            number,
            self._checkpoint.fingerprint,
            items.item_id[rows.numpy() - 1],
            _numbers(now[0], rows),
            _numbers(now[1], rows) if len(now) > 1 else None,
            {name: items.side[name][rows.numpy() - 1] for name in names} if number == 1 else {},
        )


def widened(checkpoint: Checkpoint, items: ItemTable) -> Ranker:
    """The model of a checkpoint with a row for each of these items, and their side features."""
    model = checkpoint.model
    rows = torch.from_numpy(np.concatenate([[UNKNOWN_ROW], checkpoint.items.rows(items.item_id)]))
    weights, bias = model.state_dict(), _bias_of(model)
    by_row = [model.items.id.weight, *([] if bias is None else [bias])]
    by_row += [] if model.graph is None else [model.graph.node.weight, model.graph.vectors]
    names = [name for name, weight in model.named_parameters() if any(weight is one for one in by_row)]
    weights |= {name: weights[name][rows] for name in names}
    wide = build(model.config.model_copy(update={"num_items": items.num_rows}))
    wide.load_state_dict(weights)
    wide.items.load_items(items)
    return wide.eval().requires_grad_(False)


def without_items(dataset: Dataset, hidden: NDArray[np.bool_]) -> Dataset:
    """The same events, of whose items some, bool [num_items], are not known."""
    items, kept = dataset.items, np.flatnonzero(~hidden)
    table = replace(
        items,
        item_id=items.item_id[kept],
        titles=tuple(items.titles[index] for index in kept),
        side={name: column[kept] for name, column in items.side.items()},
        num_events=None if items.num_events is None else items.num_events[kept],
        texts=None if items.texts is None else Texts.of(items.texts.at(int(index)) for index in kept),
    )
    return replace(dataset, items=table)


def _bias_of(model: Ranker) -> Tensor | None:
    """What the heads add for each item, [num_rows, num_tasks]; None of a model without."""
    table = model.heads.item_bias if isinstance(model, TaskRanker) else None
    return None if table is None else table.weight


def _numbers(weight: Tensor, rows: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weight[rows].float().numpy()
    return found

"""What a large user model learns, and what it is judged by: the next item of a user under a condition.

Learning is InfoNCE: of all items of the condition's category the one that came next is to be the nearest. The category
of a target is any, or one of its item's; its outcome is what the event was. Judged are the next items that were liked,
asked for as that alone: how often they are among the 10 and the 50 nearest, items that the user has seen included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mfalcon.models.conditions import ANY
from mfalcon.models.items import UNKNOWN_ROW
from mfalcon.models.lum import LUM
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import Batch, Columns, Visibility, Window, grouped, windows_of
from mfalcon.types import Ids

MODEL, POPULARITY = "model", "popularity"
_NEGATIVES = 16_384
"""Items that a step tells the next one from; of a larger catalogue they are drawn anew in each step."""
_ANY_SHARE = 0.5
"""What the condition of any item weighs when one is drawn for a target, beside 1 for each category of its item."""
_BATCH = 16
_ROWS_AT_ONCE = 512
DEPTHS = (10, 50)


@dataclass(frozen=True, slots=True)
class InterestReport:
    """How often the next liked item is among the nearest 10 and 50. Popularity knows no history, and no visibility."""

    visibility: Visibility | None
    num_rows: int
    hit_rate_10: float
    hit_rate_50: float
    scorer: str = MODEL

    @property
    def quality(self) -> float:
        """What the best epoch is chosen by."""
        return self.hit_rate_50

    @property
    def figures(self) -> str:
        """For a person."""
        return f"HR@10 {self.hit_rate_10:.4f}, HR@50 {self.hit_rate_50:.4f}"


class InterestObjective:
    """InfoNCE with negatives within the condition; see `mfalcon.train.objective.Objective`."""

    judged_by = "HR@50"

    def __init__(self, dataset: Dataset, columns: Columns, config: TrainConfig) -> None:
        self._dataset, self._columns, self._config = dataset, columns, config

    def loss(self, model: LUM, batch: Batch) -> Tensor:
        """Of the targets whose items are known; 0 where none is."""
        hidden = torch.rand(batch.events.rows.shape) < self._config.item_dropout
        events = replace(batch.events, rows=batch.events.rows.masked_fill(hidden, UNKNOWN_ROW))
        members, is_target = model.members(), batch.target_valid & (batch.targets.rows != UNKNOWN_ROW)
        rows = batch.targets.rows
        weights = members[rows].float()
        weights[..., ANY] = _ANY_SHARE
        category = torch.multinomial(weights.flatten(0, -2), 1).view(rows.shape)
        is_positive = outcomes(model, self._columns)[batch.target_index.clamp(max=len(self._columns.labels) - 1)]
        asked = replace(batch.targets, rows=condition_rows(model, category, is_positive))
        interests = model.outputs(events, batch.valid, asked, batch.visible, batch.target_times)[is_target]
        known, category = rows[is_target], category[is_target]
        among = _negatives(model, known)
        is_of = members[among].t()[category]
        logits = model.logits(interests, among).masked_fill(~is_of, -torch.inf)
        loss = functional.cross_entropy(logits, torch.searchsorted(among, known), reduction="sum")
        return loss / max(1, len(known))

    def validate(self, model: LUM, is_target: NDArray[np.bool_]) -> InterestReport:
        """How near the next liked items are."""
        return evaluate_interests(model, self._dataset, is_target, self._config.visibility, self._columns)

    def finish(self, model: LUM, is_target: NDArray[np.bool_]) -> None:
        """There is nothing to calibrate."""


def outcomes(model: LUM, columns: Columns) -> Tensor:
    """Of every event: bool [num_events], whether it was of the positive outcome."""
    config = model.config
    assert config.lum is not None
    which = [task.name for task in config.tasks].index(config.lum.task)
    return columns.labels[:, which] > 0


def condition_rows(model: LUM, category: Tensor, is_positive: Tensor) -> Tensor:
    """Rows of conditions, int64 [...], by category and outcome: see `mfalcon.models.conditions.conditions`."""
    return category + torch.where(is_positive, 0, model.num_target_rows // 2)


def _negatives(model: LUM, known: Tensor) -> Tensor:
    """Rows of items to tell from each other, ascending: all but the reserved one, or as many as a step takes, and with
    them those that are right [num_targets].
    """
    num_items = model.config.num_items
    if num_items <= _NEGATIVES:
        return torch.arange(1, num_items)
    drawn: Tensor = torch.cat([known, torch.randint(1, num_items, (_NEGATIVES,))]).unique()
    return drawn


def evaluate_interests(
    model: LUM, dataset: Dataset, is_target: NDArray[np.bool_], visibility: Visibility, columns: Columns | None = None
) -> InterestReport:
    """Hit rates over the chosen events that are of the positive outcome and whose items the model knows."""
    columns = columns or Columns(dataset, model.config, visibility)
    wanted = is_target & outcomes(model, columns).numpy() & (columns.rows[:-1] != UNKNOWN_ROW).numpy()
    model.eval()
    index, interests = interests_of(model, columns, windows_of(model, dataset, wanted, visibility), 0)
    rows = columns.rows[index]
    with torch.inference_mode():
        everything = torch.arange(model.config.num_items)
        found = [
            places(model.logits(asked, everything), of)
            for asked, of in zip(interests.split(_ROWS_AT_ONCE), rows.split(_ROWS_AT_ONCE), strict=True)
        ]
    return report_of(MODEL, visibility, torch.cat(found))


def interests_of(model: LUM, columns: Columns, items: Sequence[Window], condition: int) -> tuple[Tensor, Tensor]:
    """What the model gives of one condition, by row, before every target: positions in the data set [num_targets] and
    interests [num_targets, dim].
    """
    index, found = [], []
    with torch.inference_mode():
        for group in grouped(items, _BATCH, None):
            batch = columns.batch(group)
            asked = replace(batch.targets, rows=torch.full_like(batch.targets.rows, condition))
            out = model.outputs(batch.events, batch.valid, asked, batch.visible, batch.target_times)
            index.append(batch.target_index[batch.target_valid])
            found.append(out[batch.target_valid])
    if not found:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, model.config.dim)
    return torch.cat(index), torch.cat(found)


def evaluate_popularity(
    model: LUM, dataset: Dataset, is_target: NDArray[np.bool_], fit: NDArray[np.bool_]
) -> InterestReport:
    """The hit rates of how often an item was liked in the `fit` events, the same for every user."""
    columns = Columns(dataset, model.config, "strict")
    likes = outcomes(model, columns).numpy()
    rows = columns.rows[:-1].numpy()
    counts = torch.from_numpy(np.bincount(rows[fit & likes], minlength=model.config.num_items)).float()
    asked: Ids = rows[is_target & likes & (rows != UNKNOWN_ROW)]
    found = [places(counts.expand(len(of), -1), of) for of in torch.from_numpy(asked).split(_ROWS_AT_ONCE)]
    return report_of(POPULARITY, None, torch.cat(found))


def places(logits: Tensor, rows: Tensor) -> Tensor:
    """The place of an item of each row of logits [n, num_items], from 0 on; among equals the middle one. The reserved
    row has none.
    """
    own = logits.gather(-1, rows.unsqueeze(-1))
    others = logits[:, 1:]
    return (others > own).sum(-1) + ((others == own).sum(-1) - 1) / 2


def report_of(scorer: str, visibility: Visibility | None, found: Tensor) -> InterestReport:
    """Of places [n]; NaN of none."""
    first, second = (float((found < depth).double().mean()) for depth in DEPTHS)
    return InterestReport(visibility, len(found), first, second, scorer)

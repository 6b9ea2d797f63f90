"""Interests as dense features of a ranker: how near an item is to what its user would like, and to what he would not.

Features of events that pre-trained the model are optimistic: it has seen their outcome. So two models are trained, each
without one half of the users, and a user's features are of the model that has not seen him (cross-fitting).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfalcon.models.base import Targets
from mfalcon.models.conditions import ANY
from mfalcon.models.lum import LUM
from mfalcon.train.dataset import Dataset
from mfalcon.train.interests import condition_rows
from mfalcon.train.sequences import Columns, Visibility, grouped, windows_of
from mfalcon.types import Floats, Ids

NAMES = (
    *("interest_like", "interest_like_less_dislike", "interest_first_category", "interest_last_category"),
    *("interest_log_share", "interest_log_ratio", "interest_popularity", "interest_likeness"),
)
_BATCH = 16
FOLDS = 2


def halves(dataset: Dataset, seed: int = 7) -> Ids:
    """The half of every event's user: int64 [num_events], 0 or 1."""
    of_user = np.random.default_rng(seed).integers(0, FOLDS, len(dataset.user_ids))
    half: Ids = of_user[dataset.user]
    return half


def interest_features(model: LUM, dataset: Dataset, visibility: Visibility) -> Floats:
    """Of every event as a candidate at its time: float32 [num_events, len(NAMES)]."""
    columns = Columns(dataset, model.config, visibility)
    everything = np.ones(len(dataset.events), dtype=np.bool_)
    out = np.zeros((len(dataset.events), len(NAMES)), dtype=np.float32)
    model.eval()
    with torch.inference_mode():
        members, rows = model.members(), torch.arange(model.config.num_items)
        keys, popularity = model.keys(rows), model.interest.popularity
        first, last = _ends(members)
        for group in grouped(windows_of(model, dataset, everything, visibility), _BATCH, None):
            batch = columns.batch(group)
            item, valid = batch.targets.rows, batch.target_valid
            nothing = torch.full_like(item, ANY)
            outcomes = torch.ones_like(item, dtype=torch.bool), torch.zeros_like(item, dtype=torch.bool)
            asked = [(of, is_positive) for of in (nothing, first[item], last[item]) for is_positive in outcomes]
            # One prefix, six conditions of each target side by side.
            num = item.shape[1]
            side_by_side = torch.cat([condition_rows(model, *each) for each in asked], dim=1)
            targets = Targets(side_by_side, batch.targets.context[:, :1].expand(-1, 6 * num, -1))
            visible, times = batch.visible.repeat(1, 6), batch.target_times.repeat(1, 6)
            found = model.outputs(batch.events, batch.valid, targets, visible, times).split(num, dim=1)
            yes, no, *_ = found
            near = [(of * keys[item]).sum(-1) for of in found]
            shares = [
                (model.interest.scale() * of @ keys.t() + popularity).log_softmax(-1).gather(-1, item.unsqueeze(-1))
                for of in (yes, no)
            ]
            numbers = (
                *(near[0], near[0] - near[1], near[2] - near[3], near[4] - near[5]),
                *(shares[0].squeeze(-1), (shares[0] - shares[1]).squeeze(-1), popularity[item], (yes * no).sum(-1)),
            )
            out[batch.target_index[valid].numpy()] = torch.stack(numbers, dim=-1)[valid].float().numpy()
    return out


def cross_fitted(
    models: Sequence[LUM], dataset: Dataset, half: Ids, is_seen: NDArray[np.bool_], visibility: Visibility
) -> Floats:
    """Features of every event that no model has learnt from. models: each learnt from the users of the other halves.
    is_seen: bool [num_users], whether any event of the user trains; of who is in no half the mean of all is taken.
    """
    by_model = [interest_features(model, dataset, visibility) for model in models]
    out: Floats = np.mean(by_model, axis=0, dtype=np.float32)
    for fold, features in enumerate(by_model):
        of_fold = is_seen[dataset.user] & (half == fold)
        out[of_fold] = features[of_fold]
    return out


def as_columns(features: Floats) -> Mapping[str, Floats]:
    """As a data set has dense features."""
    return {name: np.ascontiguousarray(features[:, index]) for index, name in enumerate(NAMES)}


def _ends(members: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last category of every row of the item table, `ANY` of an item without one: int64 [num_items]
    each.
    """
    codes = torch.arange(members.shape[1])
    last = torch.where(members, codes, ANY).amax(-1)
    first = torch.where(members & (codes != ANY), codes, len(codes)).amin(-1)
    return torch.where(first == len(codes), ANY, first), last

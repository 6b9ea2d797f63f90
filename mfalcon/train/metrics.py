"""How good scores are: AUC, GAUC, normalised entropy and NDCG. numpy only.

Tied scores are worth their average over all orders, so no figure depends on the order of the rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Reals = NDArray[np.float64]
Groups = NDArray[np.int64]

PROBABILITY_FLOOR = 1e-7


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN when one class is absent.

    labels: [n] 0 or 1; scores: [n], any scale.
    """
    label, score = _binary(labels), _scores(scores)
    return float(_auc_of_groups(np.zeros(len(label), dtype=np.int64), 1, label, score)[0])


def gauc(groups: ArrayLike, labels: ArrayLike, scores: ArrayLike) -> float:
    """AUC within each group (user or request), weighted by the group's rows; groups of one class are left out.

    groups: [n] any ids; labels: [n] 0 or 1; scores: [n]. NaN when no group has both classes.
    """
    label, score = _binary(labels), _scores(scores)
    group, num_groups = _dense(groups)
    value = _auc_of_groups(group, num_groups, label, score)
    defined = ~np.isnan(value)
    if not defined.any():
        return float("nan")
    return float(np.average(value[defined], weights=np.bincount(group, minlength=num_groups)[defined]))


def normalized_entropy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Log loss over the log loss of always saying the base rate of these labels: 1 is no better than the base rate.

    labels: [n] 0 or 1; probabilities: [n], clipped to [1e-7, 1 - 1e-7]. NaN when one class is absent.
    Source: He et al., Practical Lessons from Predicting Clicks on Ads at Facebook, 2014, section 3.
    """
    label = _binary(labels)
    probability = np.clip(_scores(probabilities), PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    base_rate = float(label.mean()) if len(label) else 0.0
    if base_rate in (0.0, 1.0):
        return float("nan")
    log_loss = -np.mean(label * np.log(probability) + (1 - label) * np.log1p(-probability))
    entropy = -(base_rate * np.log(base_rate) + (1 - base_rate) * np.log1p(-base_rate))
    return float(log_loss / entropy)


def ndcg_at(groups: ArrayLike, labels: ArrayLike, scores: ArrayLike, k: int = 10) -> float:
    """Mean NDCG@k over the groups with a positive label: gain is the label, discount 1 / log2(position + 2).

    groups: [n] any ids; labels: [n] >= 0; scores: [n]. NaN when no group has a positive.
    """
    gain, score = np.asarray(labels, dtype=np.float64), _scores(scores)
    group, num_groups = _dense(groups)
    achieved = _dcg(group, num_groups, gain, score, k)
    ideal = _dcg(group, num_groups, gain, gain, k)
    positive = ideal > 0
    return float(np.mean(achieved[positive] / ideal[positive])) if positive.any() else float("nan")


def _auc_of_groups(group: Groups, num_groups: int, label: Reals, score: Reals) -> Reals:
    """[num_groups] AUC by the rank sum of the positives (Mann-Whitney), NaN where a class is absent."""
    order = np.lexsort((score, group))
    block, num_in_block = _tied_blocks(group[order], score[order])
    block_start = np.cumsum(num_in_block) - num_in_block
    num_in_group = np.bincount(group, minlength=num_groups)
    group_start = np.cumsum(num_in_group) - num_in_group
    rank = (block_start + (num_in_block + 1) / 2)[block] - group_start[group[order]]
    num_positive = np.bincount(group, weights=label, minlength=num_groups)
    rank_sum = np.bincount(group[order], weights=label[order] * rank, minlength=num_groups)
    pairs = num_positive * (num_in_group - num_positive)
    wins = rank_sum - num_positive * (num_positive + 1) / 2
    value: Reals = np.divide(wins, pairs, out=np.full(num_groups, np.nan), where=pairs > 0)
    return value


def _dcg(group: Groups, num_groups: int, gain: Reals, score: Reals, k: int) -> Reals:
    """[num_groups] discounted gain of the k best-scored rows, tied rows sharing the mean of their gains."""
    order = np.lexsort((-score, group))
    block, num_in_block = _tied_blocks(group[order], score[order])
    num_in_group = np.bincount(group, minlength=num_groups)
    group_start = np.cumsum(num_in_group) - num_in_group
    position = np.arange(len(order)) - group_start[group[order]]
    discount = np.where(position < k, 1 / np.log2(position + 2), 0.0)
    shared_gain = (np.bincount(block, weights=gain[order], minlength=len(num_in_block)) / num_in_block)[block]
    return np.bincount(group[order], weights=shared_gain * discount, minlength=num_groups).astype(np.float64)


def _tied_blocks(group: Groups, score: Reals) -> tuple[Groups, Groups]:
    """Rows sorted by group and score -> [n] block of each row, [num_blocks] its size; rows of a block are tied."""
    first = np.ones(len(group), dtype=np.bool_)
    first[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    block = np.cumsum(first) - 1
    return block, np.bincount(block)


def _dense(groups: ArrayLike) -> tuple[Groups, int]:
    """Any ids -> [n] 0 .. num_groups - 1, num_groups."""
    unique, inverse = np.unique(np.asarray(groups), return_inverse=True)
    return inverse.astype(np.int64), len(unique)


def _binary(labels: ArrayLike) -> Reals:
    label = np.asarray(labels, dtype=np.float64)
    if not np.isin(label, (0.0, 1.0)).all():
        raise ValueError("labels: must be 0 or 1")
    return label


def _scores(scores: ArrayLike) -> Reals:
    score = np.asarray(scores, dtype=np.float64)
    if np.isnan(score).any():
        raise ValueError(f"scores: {int(np.isnan(score).sum())} of {len(score)} are NaN")
    return score

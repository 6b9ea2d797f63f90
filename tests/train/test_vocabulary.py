"""A checkpoint is evaluated in its own words, whatever file the events come from."""

from dataclasses import replace

import numpy as np
import pytest

from mfalcon.errors import DataError
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.recipes import model_config
from mfalcon.train.synthetic import synthetic
from mfalcon.train.vocabulary import fit_to, missing_features

DATASET = synthetic(num_users=30, num_items=60, events_per_user=20, seed=0)


def checkpoint(dataset: Dataset = DATASET) -> Checkpoint:
    model: Ranker = build(model_config(dataset, "dfgr", dim=16)).eval()
    model.items.load_items(DATASET.items)
    return Checkpoint(model, DATASET.items, "f")


def later_file(num_items: int) -> Dataset:
    """The same events as read from a file of its own: fewer items known, actions in another order, no user context."""
    kept = DATASET.items.item_id[:num_items]
    bits = DATASET.events["actions"]
    events = DATASET.events.copy()
    reverse = tuple(reversed(DATASET.actions))
    events["actions"] = 0
    for bit, action in enumerate(DATASET.actions):
        events["actions"] |= (bits >> np.uint32(bit) & 1) << np.uint32(reverse.index(action))
    items = ItemTable(kept, ("",) * len(kept), {})
    return replace(DATASET, events=events, actions=reverse, items=items, side_features=())


def test_scores_do_not_depend_on_what_else_the_file_knows() -> None:
    loaded = checkpoint()
    every = np.ones(len(DATASET.events), dtype=np.bool_)
    _, _, expected = evaluate(loaded.model, DATASET, every, "strict")
    _, _, scores = evaluate(loaded.model, fit_to(later_file(20), loaded), every, "strict")
    assert np.array_equal(scores, expected)


def test_an_action_that_the_checkpoint_does_not_know_is_refused() -> None:
    with pytest.raises(DataError, match="'share'"):
        fit_to(replace(DATASET, actions=(*DATASET.actions[:-1], "share")), checkpoint())


def test_context_with_other_values_is_refused() -> None:
    first, *rest = DATASET.context_features
    other = first.model_copy(update={"num_values": first.num_values + 1, "values": ()})
    with pytest.raises(DataError, match=first.name):
        fit_to(replace(DATASET, context_features=(other, *rest)), checkpoint())


def test_features_that_a_file_lacks_are_named() -> None:
    column = np.arange(len(DATASET.events), dtype=np.float32)
    loaded = checkpoint(replace(DATASET, dense={"price": column, "place": column}))
    assert missing_features(fit_to(replace(DATASET, dense={"price": column}), loaded), loaded) == ["place"]
    assert not missing_features(fit_to(DATASET, checkpoint()), checkpoint())

"""Rows that go on learning: nothing else moves, and what they send makes the table of a server theirs."""

import numpy as np
import torch

from mfalcon.backends.select import any_reference
from mfalcon.items.live import LiveItems
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import build
from mfalcon.train.item_rows import ItemRows, widened, without_items
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(num_users=30, num_items=40, events_per_user=20, seed=0)
HIDDEN = np.arange(40) % 5 == 0
PARTS = split(DATASET, "A")


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    known = without_items(DATASET, HIDDEN)
    model = build(model_config(known, "dfgr", dim=16, num_layers=1, num_heads=2))
    model.items.load_items(known.items)
    return Checkpoint(model.eval().requires_grad_(False), known.items, "f" * 64)


def test_a_server_with_the_deltas_has_the_rows_that_learned() -> None:
    served = checkpoint()
    learner = ItemRows(served, DATASET, TrainConfig(batch_size=4))
    live = LiveItems(any_reference(served.model), served.items, served.fingerprint)
    for number, part in enumerate((TRAIN, VALIDATION, TEST), start=1):
        learner.learn(np.equal(PARTS, part))
        delta = learner.delta(number)
        assert delta.side.keys() == (DATASET.items.side.keys() if number == 1 else set())
        live.current = live.made(delta)
    rows = live.current.items.rows(DATASET.items.item_id)
    assert rows.all()
    now, model = live.current.served.model, learner.model
    assert np.array_equal(now.items.vectors(rows), model.items.vectors(1 + np.arange(40)))
    learned = {
        name: one for name, one in model.state_dict().items() if "items.id" not in name and "item_bias" not in name
    }
    assert all(torch.equal(served.model.state_dict()[name], one) for name, one in learned.items())


def test_a_wider_model_scores_as_the_checkpoint() -> None:
    """Of items that it knows; the others have side features now."""
    served = checkpoint()
    wide = widened(served, served.items)
    assert all(torch.equal(served.model.state_dict()[name], one) for name, one in wide.state_dict().items())
    rows = served.items.rows(DATASET.items.item_id)
    vectors = widened(served, DATASET.items).items.vectors(1 + np.flatnonzero(rows))
    assert np.array_equal(vectors, served.model.items.vectors(rows[rows != 0]))

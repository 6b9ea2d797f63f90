"""InfoNCE under conditions: it learns, negatives are of the condition, and the hit rates are what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mfalcon.train.interests
from mfalcon.models.lum import LUM
from mfalcon.train.interests import (
    InterestObjective,
    evaluate_interests,
    evaluate_popularity,
    places,
    report_of,
)
from mfalcon.train.objectives import objective_of
from mfalcon.train.recipes import model_config, train_config
from mfalcon.train.sequences import Batch, Columns, windows_of
from mfalcon.train.splits import TRAIN, VALIDATION, split
from mfalcon.train.synthetic import synthetic
from mfalcon.train.trainer import Progress, train

DATASET = synthetic(60, 120, 25, seed=1)
CONFIG = model_config(DATASET, "lum", dim=16, num_layers=1, max_history=24, window_chunk=12, dropout=0.0)
LEARN = train_config("lum").model_copy(update={"epochs": 5, "batch_size": 8, "learning_rate": 1e-2})


def untrained() -> LUM:
    torch.manual_seed(0)
    model = LUM(CONFIG)
    model.items.load_items(DATASET.items)
    return model


def some_batch(columns: Columns, model: LUM) -> Batch:
    items = windows_of(model, DATASET, split(DATASET, "A") == TRAIN, "strict")
    return columns.batch(items[:6])


def test_it_learns(tmp_path: Path) -> None:
    seen: list[Progress] = []
    model = train(DATASET, CONFIG, LEARN, tmp_path, seen.append)
    assert isinstance(model, LUM)
    losses = [p.loss for p in seen if p.validation is None and p.step == p.steps_per_epoch]
    assert losses[-1] < losses[0] - 0.2
    chosen, fit = split(DATASET, "A") == VALIDATION, split(DATASET, "A") == TRAIN
    before = evaluate_interests(untrained(), DATASET, chosen, "strict")
    after = evaluate_interests(model, DATASET, chosen, "strict")
    popular = evaluate_popularity(model, DATASET, chosen, fit)
    assert before.num_rows == after.num_rows == popular.num_rows > 50
    assert after.hit_rate_50 > before.hit_rate_50 + 0.1
    assert 0 <= popular.hit_rate_10 <= popular.hit_rate_50 <= 1
    assert [p.judged_by for p in seen if p.validation is not None] == ["HR@50"] * LEARN.epochs


def test_negatives_are_within_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are of none of the categories that were drawn have no part in the loss."""
    monkeypatch.setattr(mfalcon.train.interests, "_ANY_SHARE", 0.0)
    model = untrained()
    columns = Columns(DATASET, CONFIG, "strict")
    batch = some_batch(columns, model)
    learn = LEARN.model_copy(update={"item_dropout": 0.0})
    objective = objective_of(model, DATASET, columns, learn, np.ones(len(DATASET.events), np.bool_))
    members = model.members()
    alone = members[:, 1:].sum(1) == 0  # such items have no category to be drawn, so that nothing may be drawn at all
    rows = torch.where(alone[batch.targets.rows], 0, batch.targets.rows)
    batch.targets.rows.copy_(rows)
    monkeypatch.setattr(mfalcon.train.interests, "_ANY_SHARE", 1e-12)
    objective.loss(model, batch).backward()
    moved = model.interest.popularity.grad
    assert moved is not None and torch.isfinite(moved).all()
    assert not moved[alone].any()
    assert moved[~alone].any()


def test_a_large_catalogue_is_told_apart_by_drawn_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all are drawn, the loss is that of all."""
    model = untrained()
    columns = Columns(DATASET, CONFIG, "strict")
    objective = InterestObjective(DATASET, columns, LEARN.model_copy(update={"item_dropout": 0.0}))
    batch = some_batch(columns, model)
    losses = []
    for negatives in (10_000, 119, 20):
        monkeypatch.setattr(mfalcon.train.interests, "_NEGATIVES", negatives)
        torch.manual_seed(7)
        losses.append(objective.loss(model.eval(), batch).item())
    assert losses[0] >= losses[1] > losses[2] > 0  # a sum over fewer items


def test_places_and_rates() -> None:
    logits = torch.tensor([[9.0, 3.0, 1.0, 2.0], [9.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    found = places(logits, torch.tensor([3, 2, 1]))
    assert found.tolist() == [1, 1, 2]  # the reserved row is no rival; the second is in the middle of three equals
    many = report_of("model", "strict", torch.tensor([0.0, 9.0, 10.0, 49.5, 50.0]))
    assert (many.hit_rate_10, many.hit_rate_50, many.num_rows) == (0.4, 0.8, 5)
    assert np.isnan(report_of("model", "strict", torch.empty(0)).hit_rate_10)

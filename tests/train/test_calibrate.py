"""Calibration mends sureness and moves no candidate past another."""

import numpy as np
import pytest
import torch

from mfalcon.train.calibrate import calibrate, platt
from mfalcon.train.metrics import auc, normalized_entropy
from tests.small import small_checkpoint, some_rows, task_model


def labelled(scale: float, shift: float, num_rows: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from sigmoid(scale * logit + shift)."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=num_rows)
    truth = rng.random(num_rows) < 1 / (1 + np.exp(-(scale * logits + shift)))
    return torch.from_numpy(logits), torch.from_numpy(truth.astype(np.float32))


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.4, -0.7), (2.5, 1.0)])
def test_platt_finds_what_the_labels_were_drawn_with(scale: float, shift: float) -> None:
    found = platt(*labelled(scale, shift))
    assert found == pytest.approx((scale, shift), abs=0.06)  # three standard errors of 20,000 draws


def test_a_model_too_sure_of_itself_is_mended_and_orders_as_before() -> None:
    model = task_model(small_checkpoint(dtype=torch.float32))
    rows, hidden = some_rows(500), torch.randn(500, model.config.dim)
    raw = model.heads(hidden, rows)
    truth = torch.stack([(torch.rand(500) < (raw[:, 0] / 4).sigmoid()).float(), raw[:, 1]], dim=1)
    before = model.heads.scores(raw)
    calibrate(model, raw, truth)
    after = model.heads.scores(model.heads(hidden, rows))
    labels = truth[:, 0].numpy()
    assert normalized_entropy(labels, after[:, 0].numpy()) < normalized_entropy(labels, before[:, 0].numpy())
    assert auc(labels, after[:, 0].numpy()) == pytest.approx(auc(labels, before[:, 0].numpy()), abs=1e-4)
    assert torch.equal(after[:, 1], before[:, 1])  # a regression is left alone


def test_labels_that_oppose_the_score_leave_the_model_alone() -> None:
    model = task_model(small_checkpoint(dtype=torch.float32))
    raw = torch.randn(200, 2)
    before = model.heads.get_parameter("item_bias.weight").clone()
    calibrate(model, raw, (raw < 0).float())
    calibrate(model, raw, torch.ones(200, 2))
    assert torch.equal(model.heads.get_parameter("item_bias.weight"), before)

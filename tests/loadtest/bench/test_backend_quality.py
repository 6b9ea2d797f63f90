"""A backend that is exact changes nothing; one that rounds is seen."""

from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.bench import backend_quality
from loadtest.bench.backend_quality import measure
from mfalcon.models import checkpoint
from mfalcon.models.registry import build
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, split
from mfalcon.train.synthetic import synthetic


@pytest.mark.parametrize("architecture", ["dfgr", "hstu"])
def test_every_backend_has_a_row_and_rounding_shows(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = synthetic(12, 40, 30, seed=2)
    model = build(model_config(dataset, architecture, dim=8, max_history=20, window_chunk=5)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=0.4, generator=generator)
    checkpoint.save(tmp_path / "c", model, dataset.items)
    monkeypatch.setattr(backend_quality, "_MICROBATCH", 7)
    seen: list[str] = []
    result = measure(tmp_path / "c", dataset, split(dataset, "A") == TEST, 3, seen.append)
    assert seen[1:] == [f"{row.dtype}, {row.backend}" for row in result.rows]
    assert {("float32", "reference"), ("bfloat16", "reference")} <= {(row.dtype, row.backend) for row in result.rows}
    for row in result.rows:
        exact = row.dtype == "float32" and "int8" not in row.backend
        assert row.worst_difference < (1e-4 if exact else 1.0)
        assert row.worst_difference > (0 if exact else 1e-4)
        assert abs(row.auc_change) < (1e-3 if exact else 0.1)
        assert row.top_10_least == 1.0 if exact else row.top_10_least >= 0.5
        assert row.spearman_least <= row.spearman_mean <= 1 + 1e-9
    assert np.isfinite([row.spearman_least for row in result.rows]).all()

"""The benchmark of an ensemble times each member and the merge, and reads its bar off the slowest member."""

import json
from pathlib import Path

import pytest
import torch

from loadtest.bench.merge import MergeOptions, page, run
from loadtest.report.result import as_json
from loadtest.report.table import as_text
from mfalcon.models import checkpoint
from tests.small import small_checkpoint


def test_every_rank_is_timed_alone_and_merged(tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        made = small_checkpoint(dtype=torch.float32, seed=seed)
        checkpoint.save(tmp_path / name, made.model, made.items)
    result = run([tmp_path / "one", tmp_path / "other"], MergeOptions((9,), 20, rounds=3), lambda _: None)
    assert {(cell.asked, cell.cores) for cell in result.cells} >= {("one", 1), ("other", 1)}
    assert [cell.asked for cell in result.cells].count("merged") == 1
    assert all(cell.took.num_samples == 3 for cell in result.cells)
    alone = [cell.took.median_ms for cell in result.cells if cell.cores == 1 and cell.asked != "merged"]
    (merged,) = (cell.took.median_ms for cell in result.cells if cell.asked == "merged")
    (bar,) = result.bars
    assert bar.value == pytest.approx(merged / max(alone))
    assert "merged" in as_text(page(result))
    assert json.loads(as_json(result))["benchmark"] == "merge"

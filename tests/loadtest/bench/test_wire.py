"""The bench of the wire compares what it says, on a server of its own."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from loadtest.bench.wire import COMPILED, HASHED, KNOWN, NEW, WireOptions, lookups, page, run
from loadtest.report.result import as_json
from loadtest.report.table import as_text
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

FEW = WireOptions(texts=20, candidates=50, top_k=2, users=3, ranked=5, events=4, rounds=2)


def test_texts_are_looked_up_and_hashed() -> None:
    rows = lookups(replace(FEW, texts=7))
    assert {row.way for row in rows} - {COMPILED} == {KNOWN, NEW, HASHED}
    assert all(row.took.num_samples == 2 and 0 < row.took.min_ms <= row.took.median_ms for row in rows)


def test_answers_and_batches_of_a_server(tmp_path: Path) -> None:
    made = small_checkpoint(dtype=torch.float32)
    checkpoint.save(tmp_path / "small", made.model, made.items)
    result = run(tmp_path / "small", FEW, lambda _: None)
    sizes = {row.way: row.num_bytes for row in result.rows if row.what == "answer"}
    assert sizes["gRPC, top"] < sizes["gRPC, both"] and sizes["HTTP, top"] < sizes["HTTP, both"]
    assert len([row for row in result.rows if row.way != COMPILED]) == 3 + 4 + 4 + 3 and len(result.bars) == 2
    assert json.loads(as_json(result))["options"]["users"] == 3
    assert "one batch" in as_text(page(result))

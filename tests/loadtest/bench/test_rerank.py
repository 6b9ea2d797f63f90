"""The benchmark of a diverse top times what it says, and its bar is read off the cell that it names."""

import json

from loadtest.bench.rerank import RerankOptions, page, run
from loadtest.report.result import as_json
from loadtest.report.table import as_text


def test_every_cell_is_timed() -> None:
    result = run(RerankOptions((9, 20), (3,), dim=4, rounds=2), lambda _: None)
    assert [(cell.method, cell.candidates, cell.places) for cell in result.cells] == [
        (method, num_candidates, 3) for num_candidates in (9, 20) for method in ("mmr", "dpp", "msd")
    ]
    assert all(cell.took.num_samples == 2 for cell in result.cells)
    assert not result.bars
    assert "dpp" in as_text(page(result))
    assert json.loads(as_json(result))["benchmark"] == "rerank"


def test_the_bar_is_of_1000_candidates() -> None:
    bars = run(RerankOptions((1_000,), (50,), rounds=1), lambda _: None).bars
    assert [bar.limit for bar in bars] == [4, 4, 4]

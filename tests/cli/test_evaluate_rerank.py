"""What `mfalcon evaluate --rerank` shows: every figure in 80 columns, the chosen strength marked, a picture, and one
pool where nobody rated enough for the other.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mfalcon.cli.evaluate_rerank import RerankRow, evaluate_rerank, plot_rerank, rerank_table
from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import build
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, VALIDATION, split
from mfalcon.train.synthetic import synthetic

ROWS = [
    RerankRow(pool, strength, strength == 0.25, 153, 0.1186, -0.0123, 0.0049, 0.5 + strength, 0.083, 0.1068, 0.655)
    for pool in ("rated", "catalogue")
    for strength in (0.0, 0.25, 0.8)
]

NOTHING = [replace(row, ndcg=0.0, gain=0.0, gain_error=0.0, diversity=0.0) for row in ROWS]


def test_the_table_fits() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(rerank_table("ml-100k-dfgr, split A, dpp", ROWS))
    text = captured.get()
    assert "…" not in text
    assert [line.split()[:3] for line in text.splitlines() if "*" in line] == [
        ["rated", "0.25", "*"],
        ["catalogue", "0.25", "*"],
    ]
    assert "+50.0%" in text


def test_where_all_items_are_alike_nothing_is_more_diverse() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(rerank_table("of one tag", NOTHING))
    assert captured.get().count("+0.0%") == len(NOTHING)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for rows in (ROWS, [row for row in ROWS if row.pool == "catalogue"], NOTHING):
        plot_rerank("ml-100k-dfgr, split A, dpp", rows, tmp_path / "rerank.png")
        assert (tmp_path / "rerank.png").read_bytes().startswith(b"\x89PNG")


def test_a_pool_of_nobody_is_left_out() -> None:
    dataset = synthetic(num_users=8, num_items=30, events_per_user=20, seed=0)  # two of each in the test part
    model: Ranker = build(model_config(dataset, "dfgr", dim=16)).eval()
    model.items.load_items(dataset.items)
    loaded = Checkpoint(model, dataset.items, "f")
    parts = split(dataset, "B")
    rows = evaluate_rerank(loaded, dataset, parts == VALIDATION, parts == TEST, "mmr", 0)
    assert {row.pool for row in rows} == {"catalogue"}
    with pytest.raises(ConfigError, match="nobody likes anything"):
        evaluate_rerank(loaded, dataset, parts == VALIDATION, parts > TEST, "mmr", 0)

"""What `mfalcon evaluate --rerank` shows: every figure in 80 columns, the chosen strength marked, a picture, and one
pool where nobody rated enough for the other.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mfalcon.cli.evaluate_rerank import TAIL_WEIGHTS, RerankRow, evaluate_rerank, plot_rerank, rerank_table
from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import build
from mfalcon.train.dataset import counted_items
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, split
from mfalcon.train.synthetic import synthetic

ROWS = [
    RerankRow(pool, strength, 0.1, strength == 0.25, 153, 0.11, -0.0123, 0.0049, 0.5 + strength, 0.08, 0.3, 0.1, 0.6)
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


def test_every_tail_weight_is_tried_beside_a_strength() -> None:
    dataset = synthetic(num_users=30, num_items=60, events_per_user=60, seed=0)
    model: Ranker = build(model_config(dataset, "dfgr", dim=16)).eval()
    parts = split(dataset, "B")
    items = counted_items(dataset, parts == TRAIN)
    model.items.load_items(items)
    loaded = Checkpoint(model, items, "f")
    rows = evaluate_rerank(loaded, dataset, parts == VALIDATION, parts == TEST, "dpp", 0, strength=0.2)
    catalogue = [row for row in rows if row.pool == "catalogue"]
    assert [(row.strength, row.tail_weight) for row in catalogue] == [(0.0, 0.0), *((0.2, w) for w in TAIL_WEIGHTS)]
    assert sum(row.chosen for row in catalogue) == 1
    tails = [row.tail for row in catalogue if row.tail is not None]
    assert len(tails) == len(catalogue) and tails[-1] > tails[1]
    with pytest.raises(ConfigError, match="how often its items were acted on"):
        evaluate_rerank(
            replace(loaded, items=replace(items, num_events=None)), dataset, parts == 1, parts == 2, "dpp", 0, 0.2
        )

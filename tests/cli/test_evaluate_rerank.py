"""What `mfalcon evaluate --rerank` shows: every figure in 80 columns, the chosen strength marked, a picture."""

from pathlib import Path

import pytest
from rich.console import Console

from mfalcon.cli.evaluate_rerank import RerankRow, plot_rerank, rerank_table

ROWS = [
    RerankRow(pool, strength, strength == 0.25, 153, 0.1186, -0.0123, 0.0049, 0.5 + strength, 0.083, 0.1068, 0.655)
    for pool in ("rated", "catalogue")
    for strength in (0.0, 0.25, 0.8)
]


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


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot_rerank("ml-100k-dfgr, split A, dpp", ROWS, tmp_path / "rerank.png")
    assert (tmp_path / "rerank.png").read_bytes().startswith(b"\x89PNG")

"""Operators read of every metric what it tells, and metrics keep to Prometheus' conventions."""

from pathlib import Path

import pytest
from prometheus_client import Metric

from mfalcon.metrics.server_metrics import ServerMetrics

DOCS = Path(__file__).parents[2] / "docs"
ROWS = [
    line.split("|")[1]
    for page in ("operations.md", "gpu.md")
    for line in (DOCS / page).read_text().splitlines()
    if line.startswith("| `mfalcon_")
]
FAMILIES = [family for family in ServerMetrics().registry.collect() if family.name.startswith("mfalcon_")]
SCRAPED_AS = {"counter": "_total"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_it_is_in_a_table(family: Metric) -> None:
    name = family.name + SCRAPED_AS.get(family.type, "")
    assert any(f"`{name}`" in row or f"`{name}{{" in row for row in ROWS)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_it_has_a_base_unit_and_a_sentence(family: Metric) -> None:
    assert not family.name.endswith(("_ms", "_us", "_milliseconds", "_kb", "_mb", "_percent", "_total"))
    assert family.documentation.endswith(".")

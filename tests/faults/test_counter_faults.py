"""Every fault of item counters in Redis: ranks go on, and when it is over the counters are a recount of the logs."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.faults.counter_faults import FAULTS, CounterFault, counting_checkpoint, measure
from mfalcon.cli import bench

CHECKPOINT = counting_checkpoint()
ALWAYS = ("frozen", "one log lost", "died before counting")
"""Two engines each; the others are for `make thorough`."""


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=() if fault.name in ALWAYS else pytest.mark.thorough)
        for fault in FAULTS
    ],
)
def test_counters_come_back_to_a_recount_of_the_logs(fault: CounterFault) -> None:
    row = asyncio.run(measure(fault, CHECKPOINT))
    assert not row.complaints
    assert row.ranks > sum(row.errors.values())
    # Of a busy machine, where a copy was verified too long ago, or the time was up.
    assert row.errors.keys() <= {"StorageUnavailable", "DeadlineExceeded"}
    assert row.healed_s is not None


@pytest.mark.thorough
def test_the_page_has_a_table_of_them(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    shown = CliRunner().invoke(
        bench.app, ["faults", "--only", "item counters, changes", "--write", str(page), "--json"]
    )
    assert shown.exit_code == 0, shown.output
    assert [row["fault"] for row in json.loads(shown.stdout)["item_counters"]] == ["changes lost"]
    assert "## Item counters" in page.read_text() and "| changes lost | XTRIM" in page.read_text()

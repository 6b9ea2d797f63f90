"""Every row of the fault table: whatever Redis does, Rank is answered rightly or with an explicit error, in time, and a
counter tells of it.
"""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.faults.redis_faults import Fault, cases
from loadtest.faults.table import Patience, Row, measure
from loadtest.faults.world import Setup, fault_checkpoint
from mfalcon.cli import bench
from mfalcon.errors import ConfigError

CHECKPOINT = fault_checkpoint()
NUM_RANKS = 3
BUSY = Patience(deadline_s=20.0, late_s=5.0, timeout_s=10.0)
"""For a machine with much other work. Who waited for a Redis that is away would wait until the deadline."""


def fault_row(fault: Fault, setup: Setup) -> Row:
    return asyncio.run(measure(fault, setup, CHECKPOINT, NUM_RANKS, BUSY))


@pytest.mark.parametrize(
    ("fault", "setup"),
    [
        pytest.param(fault, setup, id=f"{fault.name}, {setup}", marks=pytest.mark.thorough if setup == "stale" else ())
        for fault, setup in cases()
    ],
)
def test_every_rank_is_answered_and_a_counter_moves(fault: Fault, setup: Setup) -> None:
    row = fault_row(fault, setup)
    assert not row.complaints
    assert any(fault.tells in name and count > 0 for name, count in row.counters.items())
    for answers in (row.on_host, row.only_in_redis):
        assert sum(answers.outcomes.values()) >= NUM_RANKS
        assert answers.max_ms <= (BUSY.deadline_s + BUSY.late_s) * 1e3
    if setup == "states":
        assert row.on_host.outcomes == {"right": NUM_RANKS}
        assert set(row.only_in_redis.outcomes) == {"right"}
        assert set(row.append) == {"acknowledged"}


def test_one_command_measures_a_fault_alone_and_under_load_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    small = ("--ranks", "3", "--rounds", "1", "--clients", "2", "--period-ms", "100", "--phase-ms", "300")
    where = ("--only", "frozen", "--write", str(page), "--json")
    shown = CliRunner().invoke(bench.app, ["faults", *small, *where])
    complaints = [line for line in shown.stderr.splitlines() if line.startswith("frozen (")]
    assert all("DEADLINE_EXCEEDED" in line or "the deadline is" in line for line in complaints)  # a busy machine
    assert shown.exit_code == (1 if complaints else 0), shown.output
    found = json.loads(shown.stdout)
    assert [row["setup"] for row in found["rows"]] == ["states", "refuse", "stale"]
    assert [(case["setup"], case["where"]) for case in found["under_load"]] == [
        *(("states", "cold"), ("stale", "cold")),
        ("stale", "host"),
    ]
    assert len(found["bars"]) == 6
    text = page.read_text()
    assert text.startswith("# Faults of Redis") and "| frozen | SIGSTOP | log, stale |" in text
    assert "## Frozen under load" in text and "| breaker open |" in text
    refused = CliRunner().invoke(bench.app, ["faults", "--only", "melted"])
    assert isinstance(refused.exception, ConfigError) and "frozen under load" in str(refused.exception)

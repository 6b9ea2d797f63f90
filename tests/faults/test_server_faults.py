"""Every row of the table of faults of the server: its request is answered rightly or with an explicit error, its
neighbours are untouched, or refused by a server that ends, and health and exit code say what a supervisor must know.
"""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtest.faults import bad_starts
from loadtest.faults.server_faults import FAULTS
from loadtest.faults.server_page import names
from loadtest.faults.server_scene import Effort, ServerFault
from loadtest.faults.server_table import ServerRow, measure
from mfalcon.cli import bench
from mfalcon.errors import ConfigError

RANKS = 3
SMALL = Effort(ranks=RANKS, freeze_s=1.0)
NEVER_READY_AGAIN = ("device thread ends", "step hangs")
ALWAYS = (*NEVER_READY_AGAIN, "no memory left", "large messages, no memory left", "poison, float16", "stderr is full")
"""Each takes the start of a process; the others are for `make thorough`."""
EXACTLY = {
    # fault: what becomes of its requests, where there is one right outcome
    "device thread ends": {"INTERNAL": 1},
    "step hangs": {"UNAVAILABLE": 1},
    "no memory for one": {"RESOURCE_EXHAUSTED": RANKS},
    "an item of no numbers": {"right, 1 failed": 1, "right": 1},
    "killed": {"UNAVAILABLE": 1, "right": 1},
    "frozen": {"DEADLINE_EXCEEDED": 1, "right": 1},
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.name, marks=() if fault.name in ALWAYS else pytest.mark.thorough)
        for fault in FAULTS
    ],
)
def test_what_becomes_of_a_request_its_neighbours_and_the_process(fault: ServerFault) -> None:
    row = measure(fault, SMALL)
    assert not row.complaints
    assert row.right > 0 and row.failed == 0
    assert row.requests == EXACTLY.get(fault.name, row.requests)
    if fault.name in NEVER_READY_AGAIN:
        assert_a_supervisor_knows(row)
    elif not fault.refuses:
        assert (row.refused, row.exit_code, row.grpc) == (0, 0, "SERVING")
        assert "right" in row.requests or fault.name in EXACTLY


def assert_a_supervisor_knows(row: ServerRow) -> None:
    assert row.exit_code == 1
    assert row.grpc.split()[2] == "NOT_SERVING"
    assert row.known_s is not None


def test_a_bad_checkpoint_ends_the_process() -> None:
    row = bad_starts.measure(1)
    assert not row.complaints
    assert row.requests == {"refused": 1}
    assert row.exit_code == 1


def test_one_command_measures_a_fault_and_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "server-faults.md"
    small = ("--of", "server", "--ranks", "3", "--only", "stdout", "--write", str(page), "--json")
    shown = CliRunner().invoke(bench.app, ["faults", *small])
    assert shown.exit_code == 0, shown.output
    assert [row["fault"] for row in json.loads(shown.stdout)["rows"]] == ["stdout is closed"]
    text = page.read_text()
    assert (
        text.startswith("# Faults of the server") and "| stdout is closed | closed from the start | right 3 |" in text
    )


def test_what_is_no_fault_is_refused() -> None:
    assert len(names()) == len(set(names())) == len(FAULTS) + 1
    refused = CliRunner().invoke(bench.app, ["faults", "--of", "server", "--only", "melted"])
    assert isinstance(refused.exception, ConfigError) and "device thread ends" in str(refused.exception)


def test_the_checkpoint_that_is_damaged_has_what_each_damage_needs(tmp_path: Path) -> None:
    for number, damage in enumerate(bad_starts.DAMAGES):
        (tmp_path / str(number)).mkdir()
        bad_starts.damaged(damage, tmp_path / str(number))

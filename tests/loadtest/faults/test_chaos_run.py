"""Two servers on one Redis, killed and frozen under load: every answer is right, every event is there once."""

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from loadtest.faults.chaos import Chaos
from loadtest.faults.chaos_client import ChaosOptions
from mfalcon.cli.chaos import run
from mfalcon.errors import EngineFailure
from mfalcon.models import checkpoint


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """Wide enough that a state is worth its way through Redis; histories are longer than its window."""
    made = random_checkpoint(shape_named("S"), 500, max_history=96)
    checkpoint.save(tmp_path / "random", made.model, made.items)
    return tmp_path / "random"


@pytest.mark.slow
def test_no_fault_makes_a_wrong_answer_or_loses_an_event(served: Path) -> None:
    """How late answers are is a figure of a quiet machine (`mfalcon chaos`), and nothing to assert on a busy one."""
    options = ChaosOptions(seconds=15, num_users=30, num_clients=6, rate=30, deadline_s=2, max_history=160)
    report = run(served, options, num_servers=2, kv_budget_mb=1, fault_gap_s=1.5)
    assert sum(report.faults.values()) >= 1, report  # a server takes long to come back on a busy machine
    assert report.checked >= 20  # beside much other work
    assert report.final > 0 and report.final % 2 == 0  # every user on both servers
    assert report.sources["redis"] > 0
    assert report.mixes["appends_that_raced"] > 0 and report.mixes["ranks_with_recent_events"] > 0
    assert (report.wrong, report.stale, report.lost) == (0, 0, 0), report.complaints
    assert (report.unanswered, report.unexpected, report.unresolved) == (0, 0, 0), report
    assert report.exited == 0, report.complaints


def test_a_fault_that_cannot_be_lifted_ends_the_run() -> None:
    def inject(stop: threading.Event) -> Counter[str]:
        raise EngineFailure("the server did not come back")

    made = random_checkpoint(shape_named("tiny"), 40, max_history=32)
    chaos = Chaos(made, ["127.0.0.1:1"], ChaosOptions(seconds=60, num_users=1, num_clients=1, rate=0.01))
    began = time.monotonic()
    with pytest.raises(EngineFailure, match="did not come back"):
        chaos.run(inject)
    assert time.monotonic() - began < 60

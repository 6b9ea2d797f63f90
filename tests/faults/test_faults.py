"""Every row of the fault table: whatever Redis does, Rank is answered rightly or with an explicit error, in time, and a
counter tells of it.
"""

import asyncio

import pytest

from loadtest.faults.table import LATE_S, Fault, Row, cases, measure
from loadtest.faults.world import DEADLINE_S, Setup, fault_checkpoint

CHECKPOINT = fault_checkpoint()
NUM_RANKS = 3


def fault_row(fault: Fault, setup: Setup) -> Row:
    return asyncio.run(measure(fault, setup, CHECKPOINT, NUM_RANKS))


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
        assert answers.max_ms <= (DEADLINE_S + LATE_S) * 1e3
    if setup == "states":
        assert row.on_host.outcomes == {"right": NUM_RANKS}
        assert set(row.only_in_redis.outcomes) == {"right"}
        assert set(row.append) == {"acknowledged"}

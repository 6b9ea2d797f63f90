"""`bench damaged`: whatever lies in the place of one user's log, no other user's request fails."""

from pathlib import Path
from typing import Literal

import pytest

from loadtest.bench.damaged import DAMAGES, MASTER, ROLLED_BACK, DamagedOptions, page, run
from loadtest.report.table import as_text
from mfalcon.models import checkpoint
from tests.small import small_checkpoint

PATIENT = ("--redis-timeout-ms", "1000")
"""A busy test machine is no slow Redis."""


@pytest.mark.slow
@pytest.mark.parametrize("damaged_log", ["refuse", pytest.param("start-empty", marks=pytest.mark.thorough)])
def test_nobody_else_sees_a_damaged_log_or_a_dead_master(
    tmp_path: Path, damaged_log: Literal["refuse", "start-empty"]
) -> None:
    loaded = small_checkpoint("dfgr")
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    options = DamagedOptions(
        tmp_path / "small", others=12, rate=40.0, seconds=0.5, rounds=1, damaged_log=damaged_log, flags=PATIENT
    )
    result = run(options, lambda _: None)
    rows = {row.fault: row for row in result.rows}
    assert list(rows) == [*DAMAGES, ROLLED_BACK, MASTER]
    assert sum(row.failed for row in result.rows) == 0
    wanted = "DATA_LOSS 10" if damaged_log == "refuse" else "OK 10"
    assert {rows[name].user_gets for name in DAMAGES} == {wanted}
    assert rows[ROLLED_BACK].user_gets == "OK 10"
    assert "OK" not in rows[MASTER].user_gets
    assert "240 MB" in as_text(page(result))

"""`bench storm`: every append that was told is in the log, and no other."""

from pathlib import Path

import pytest

from loadtest.bench.storm import EACH, ONE, StormOptions, page, run
from loadtest.report.table import as_text
from mfalcon.models import checkpoint
from tests.small import small_checkpoint


@pytest.mark.slow
def test_a_storm_is_told_rightly(tmp_path: Path) -> None:
    loaded = small_checkpoint("dfgr")
    checkpoint.save(tmp_path / "small", loaded.model, loaded.items)
    options = StormOptions(tmp_path / "small", replicas=2, writers=4, history=5, seconds=0.5, rounds=1)
    result = run(options, lambda _: None)
    assert [row.load for row in result.rows] == [ONE, EACH]
    assert all((row.wrong, row.failed) == (0, 0) and row.slowest > 0 for row in result.rows)
    assert ONE in as_text(page(result))

"""`bench log`: every kind is measured, and the bounds are those that are kept."""

from pathlib import Path

from loadtest.bench.event_log import FSYNC, KINDS, MEMORY, LogOptions, page, run
from loadtest.report.table import as_text


def test_a_small_run_measures_every_log(tmp_path: Path) -> None:
    options = LogOptions(users=300, events=20, writers=(1, 8), seconds=0.1, rounds=1, bounded_users=6_000, bounded_mb=2)
    result = run(options, tmp_path, lambda _: None)
    assert {(row.log, row.writers) for row in result.rates} == {(kind, num) for kind in KINDS for num in (1, 8)}
    assert all(row.per_second > 0 and row.p99_ms >= row.p50_ms for row in result.rates)
    assert [row.log for row in result.sizes] == [MEMORY, FSYNC]
    assert all(row.start_s is not None and row.killed_s is not None for row in result.sizes if row.log == FSYNC)
    (bound,) = result.bounds
    assert bound.kept + bound.evicted == 6_000
    assert bound.evicted > 0 and bound.known_lost == 0
    assert "durable appends a second" in as_text(page(result))
    assert not list(tmp_path.iterdir())

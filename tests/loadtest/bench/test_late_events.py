"""The benchmark of late events holds its own bars, and counts what is late as it is defined."""

from dataclasses import replace

import numpy as np

from loadtest.bench.late_events import QUICK, num_late, run, stream
from loadtest.report.pages import late_events_page
from loadtest.report.table import as_text

OPTIONS = replace(QUICK, num_events=900, num_users=3, checked_users=3, late_share=0.05)


def test_the_stream_is_as_it_is_said() -> None:
    users, events, order = stream(OPTIONS)
    assert (np.diff(events["time_ms"]) > 0).all()
    assert sorted(order.tolist()) == list(range(900))
    moved = events["time_ms"][order]
    newest = np.maximum.accumulate(moved)
    assert np.count_nonzero(moved < newest) > 0 and (newest - moved).max() <= 1_000 * OPTIONS.max_delay_s
    late = num_late(users[order], events[order])
    by_hand = 0
    for user in range(OPTIONS.num_users):
        times = moved[users[order] == user]
        by_hand += int(np.count_nonzero(times < np.maximum.accumulate(times)))
    assert late == by_hand > 0
    assert num_late(users, events) == 0


def test_every_bar_holds() -> None:
    said: list[str] = []
    result = run(OPTIONS, said.append)
    assert [bar.name for bar in result.bars if not bar.holds] == []
    rows = {row.late_events: row for row in result.rows}
    assert rows["insert"].inserted == rows["clamp"].clamped == rows["reject"].lost == result.late
    assert 0 < rows["insert"].again < rows["insert"].whole
    assert rows["reject"].sorted_users == 0
    assert said == ["in order", "reject", "clamp", "insert"]
    assert f"{result.late:,} late" in as_text(late_events_page(result))

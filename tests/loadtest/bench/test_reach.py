"""The bench of layers that see a part of a history, on a small scale."""

import json

from kernels.reach import Reach
from loadtest.bench import reach
from loadtest.bench.reach import ALL, FULL, LATER, QualityOptions, QualityResult, QualityRow, ReachOptions
from loadtest.report.machine import this_machine
from loadtest.report.result import as_json
from loadtest.report.table import as_markdown


def test_every_model_is_measured_in_turns() -> None:
    options = ReachOptions("tiny", 40, 5, 1, rounds=2, reach=Reach(tokens=3, targets=10, first=2))
    said: list[str] = []
    found = reach.measure(options, said.append)
    assert [row.layers for row in found.rows] == [FULL, LATER, ALL]
    for row in found.rows:
        for times in (row.score, row.append, row.prefill):
            assert 0 < times.p50 <= times.p99
    assert all(times.ratio == 1 for times in (found.rows[0].score, found.rows[0].append, found.rows[0].prefill))
    of_a_layer = (40 - 12) * 2 * 32 * 4  # K and V of a width of 32 in float32
    assert [row.unread_bytes for row in found.rows] == [0, of_a_layer, 2 * of_a_layer]
    assert json.loads(as_json(found))["options"]["reach"] == {"tokens": 3, "targets": 10, "first": 2}
    assert said and "all but the first" in as_markdown(reach.page(found))


def test_the_page_of_the_quality() -> None:
    row = QualityRow(FULL, (0.77, 0.78), (0.83, 0.84), (0.75, 0.76))
    found = QualityResult("reach-quality", this_machine(), None, QualityOptions(), (row,))
    assert "0.7750 (0.7700-0.7800)" in as_markdown(reach.quality_page(found))

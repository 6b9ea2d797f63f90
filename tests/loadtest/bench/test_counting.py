"""The benchmark of counting asks a server with item counters and one without in turns, and refuses two of a kind."""

import json
from pathlib import Path

import pytest
import torch

from loadtest.bench.counting import COUNTED, PLAIN, CountingOptions, page, run
from loadtest.report.result import as_json
from loadtest.report.table import as_text
from mfalcon.errors import ConfigError
from mfalcon.models import checkpoint
from tests.small import small_checkpoint, small_config

OPTIONS = CountingOptions((1, 7), appends=5, ranks=(5.0,), users=3)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for name, with_counters in ((COUNTED, True), (PLAIN, False)):
        loaded = small_checkpoint(dtype=torch.float32, config=small_config(with_counters=with_counters))
        made[name] = tmp_path / name.replace(" ", "-")
        checkpoint.save(made[name], loaded.model, loaded.items)
    return made


def test_both_are_asked_as_often_and_nothing_fails(paths: dict[str, Path]) -> None:
    result = run(paths[COUNTED], paths[PLAIN], OPTIONS, lambda _: None)
    assert [(c.counters, c.events, c.ranks, c.failed) for c in result.cells] == [
        (name, num, 5.0, 0) for num in (1, 7) for name in (COUNTED, PLAIN)
    ]
    assert all(0 < cell.p50_ms <= cell.p95_ms <= cell.p99_ms for cell in result.cells)
    assert COUNTED in as_text(page(result))
    assert json.loads(as_json(result))["benchmark"] == "counting"


def test_two_of_a_kind_are_refused(paths: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="must read item counters"):
        run(paths[PLAIN], paths[PLAIN], OPTIONS, lambda _: None)
    with pytest.raises(ConfigError, match="must not read item counters"):
        run(paths[COUNTED], paths[COUNTED], OPTIONS, lambda _: None)

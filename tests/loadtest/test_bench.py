"""The benchmarks on the tiny shape: what they print is well-formed, and what they compare is equal."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from loadtest import bench_append, bench_score
from loadtest.bench_append import AppendOptions
from loadtest.bench_score import ScoreOptions, Sweep, SweepPoint
from loadtest.peaks import Peaks, faster, probe
from loadtest.timing import Spread, spread, take_turns
from mfalcon.cli import bench
from mfalcon.errors import ConfigError

TINY = ("--shape", "tiny", "--n", "33", "--seconds", "0", "--threads", "1")
SPREAD = {"median_ms", "min_ms", "max_ms", "num_samples"}
TOP = {"benchmark", "machine", "commit", "dtype", "notes", "peaks", "cells"}


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are a second each; any number will do here."""
    peaks = Peaks(1e12, "matmul", 2e12, "matmul", 1e12)
    monkeypatch.setattr(bench_score, "probe", lambda _: peaks)
    monkeypatch.setattr(bench_append, "probe", lambda _: peaks)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(bench.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def only_object(result: Result) -> dict[str, Any]:
    """Standard output holds exactly one JSON object, without NaN or infinity."""
    parsed = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert isinstance(parsed, dict)
    return parsed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_score_json(dtype: str) -> None:
    found = only_object(invoke("score", *TINY, "--m", "5", "--m", "40", "--dtype", dtype, "--json"))
    assert set(found) == TOP | {"sweeps"}
    assert (found["benchmark"], found["dtype"]) == ("score", dtype)
    assert found["machine"]["threads"] == 1
    assert any("scaled, not measured" in note for note in found["notes"])
    assert [(cell["shape"], cell["n"], cell["m"]) for cell in found["cells"]] == [("tiny", 33, 5), ("tiny", 33, 40)]
    for cell in found["cells"]:
        for name in ("prefill_ms", "cached_ms", "per_candidate_ms", "masked_ms"):
            assert set(cell[name]) == SPREAD
            assert 0 < cell[name]["min_ms"] <= cell[name]["median_ms"] <= cell[name]["max_ms"]
            assert cell[name]["num_samples"] == 3
        scaled = cell["per_candidate_ms"]["median_ms"] * cell["m"]
        assert cell["per_candidate_total_ms"] == pytest.approx(scaled)
        assert cell["speedup_per_candidate"] == pytest.approx(scaled / cell["cached_ms"]["median_ms"])
        assert cell["floor_fraction"] == pytest.approx(cell["floor_ms"] / cell["cached_ms"]["median_ms"])
        # float32: rounding of other orders of sums. bfloat16: one unit in the last place, 0.4%, through two layers.
        assert cell["worst_difference"] <= (1e-5 if dtype == "float32" else 5e-2)
    assert [point["microbatch"] for point in found["sweeps"][0]["points"]] == [32, 40]


def test_append_json() -> None:
    found = only_object(invoke("append", *TINY, "--k", "1", "--k", "7", "--json"))
    assert set(found) == TOP
    assert [(cell["n"], cell["k"]) for cell in found["cells"]] == [(33, 1), (33, 7)]
    for cell in found["cells"]:
        assert all(set(cell[name]) == SPREAD for name in ("prefill_ms", "append_ms", "copying_ms"))
        assert cell["speedup"] == pytest.approx(cell["prefill_ms"]["median_ms"] / cell["append_ms"]["median_ms"])
        assert cell["worst_difference"] <= 1e-5


def test_tables_say_what_is_scaled_and_what_is_skipped() -> None:
    shown = invoke("score", *TINY, "--m", "5", "--masked-gib", "0").stdout
    assert "measured on a few candidates, scaled by m" in shown
    assert "masked forward of tiny n=33 m=5 skipped: its mask and scores would need" in shown
    assert "copying" in invoke("append", *TINY, "--k", "3").stdout


@pytest.mark.parametrize("command", [("score", "--m", "5"), ("append", "--k", "1")])
def test_plot_is_a_png(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    invoke(*command, *TINY, "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_without_matplotlib_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = CliRunner().invoke(bench.app, ["score", *TINY, "--m", "5", "--plot", str(tmp_path / "plot.png")])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "matplotlib" in str(result.exception)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape: got 'XL', must be one of S, B, tiny"):
        bench_score.run(ScoreOptions(shapes=("XL",)), lambda _: None)
    with pytest.raises(ConfigError, match="dtype: got 'int8', must be one of float32, bfloat16"):
        bench_append.run(AppendOptions(dtype="int8"), lambda _: None)


def test_a_slow_masked_forward_is_measured_once() -> None:
    options = ScoreOptions(("tiny",), (33,), (5,), (32,), seconds=0, masked_seconds=0)
    (cell,) = bench_score.run(options, lambda _: None).cells
    assert cell.masked_ms is not None
    assert cell.masked_ms.num_samples == 1


def test_the_best_microbatch_has_the_least_median() -> None:
    points = tuple(SweepPoint(size, Spread(ms, 0, 9, 3)) for size, ms in ((32, 3.0), (64, 1.0), (128, 2.0)))
    assert Sweep("S", 1, 1, points).best == 64


def test_competitors_take_turns() -> None:
    order: list[str] = []
    actions = {name: (lambda index, name=name: order.append(f"{name}{index}")) for name in ("a", "b")}
    samples = take_turns(actions, seconds=0, min_rounds=2, max_rounds=9)
    assert order == ["a0", "b0", "a1", "b1"]
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 2, "b": 2}


def test_spread_is_in_milliseconds() -> None:
    assert spread([0.003, 0.001, 0.002]) == Spread(2.0, 1.0, 3.0, 3)


def test_peaks_are_positive_and_the_faster_of_two_wins() -> None:
    peaks = probe(0.0)
    assert min(peaks.float32_flops, peaks.bfloat16_flops, peaks.silus) > 0
    a, b = Peaks(3.0, "matmul", 1.0, "matmul", 5.0), Peaks(2.0, "packed linear", 4.0, "packed linear", 6.0)
    assert faster(a, b) == faster(b, a) == Peaks(3.0, "matmul", 4.0, "packed linear", 6.0)

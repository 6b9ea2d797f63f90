"""The benchmarks on the tiny shape: what they print is well-formed, and what they compare is equal."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from kernels.cpu import build_library
from loadtest.bench import append as bench_append
from loadtest.bench import peaks
from loadtest.bench import score as bench_score
from loadtest.bench.append import AppendOptions
from loadtest.bench.busy import Neighbour
from loadtest.bench.floor import append_work, prefill_work, score_work
from loadtest.bench.peaks import Peaks, faster, probe
from loadtest.bench.score import ScoreOptions, Sweep, SweepPoint, backends_here
from loadtest.bench.shapes import SHAPES
from loadtest.report.timing import Samples, Spread, always, measured, spread, take_turns
from mfalcon.backends.choice import runnable
from mfalcon.cli import bench
from mfalcon.errors import ConfigError

TINY = ("--shape", "tiny", "--seconds", "0", "--threads", "1")
PEAKS = Peaks(1e12, "matmul", 2e12, "matmul", 1e12, "torch")
TOP = {"benchmark", "machine", "commit", "dtype", "notes", "peaks", "cells"}
CELL = {
    *("phase", "shape", "n", "m", "k", "dtype", "backend", "microbatch", "ms", "ms_spread", "ms_quartiles"),
    *("num_samples", "floor_ms", "fraction", "busy_ms", "busy_ms_spread", "busy_ratio", "instead_ms", "speedup"),
    *("work_ratio", "fork_ms", "worst_difference"),
}
# float32: rounding of other orders of sums. bfloat16: one unit in the last place, 0.4%, through two layers.
BOUNDS = {"float32": 1e-5, "bfloat16": 5e-2}


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaks are a second each; any number will do here."""
    monkeypatch.setattr(bench_score, "probe", lambda _: PEAKS)
    monkeypatch.setattr(bench_append, "probe", lambda _: PEAKS)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(bench.app, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def only_object(result: Result) -> dict[str, Any]:
    """Standard output holds exactly one JSON object, without NaN or infinity."""
    parsed = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert isinstance(parsed, dict)
    return parsed


def check_cell(cell: dict[str, Any], dtype: str, busy: bool) -> None:
    assert set(cell) == CELL
    assert 0 < cell["ms_spread"][0] <= cell["ms_quartiles"][0] <= cell["ms"]
    assert cell["ms"] <= cell["ms_quartiles"][1] <= cell["ms_spread"][1]
    assert cell["num_samples"] == 3
    assert cell["fraction"] == pytest.approx(cell["floor_ms"] / cell["ms"])
    if busy:
        assert cell["busy_ms_spread"][0] <= cell["busy_ms"] <= cell["busy_ms_spread"][1]
        assert cell["busy_ratio"] == pytest.approx(cell["busy_ms"] / cell["ms"])
    else:
        assert cell["busy_ms"] is cell["busy_ms_spread"] is cell["busy_ratio"] is None
    assert cell["worst_difference"] <= BOUNDS[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_score_json(dtype: str) -> None:
    """On every backend that can run here, the portable ones included."""
    backends = [choice.name for choice in runnable(torch.device("cpu"), getattr(torch, dtype))]
    asked = [word for name in (*backends, "unbatched") for word in ("--backend", name)]
    command = ("score", *TINY, "--n", "33", "--m", "5", "--m", "70", "--dtype", dtype, "--peer", "--busy", *asked)
    found = only_object(invoke(*command, "--json"))
    assert set(found) == TOP | {"sweeps", "skipped"}
    assert (found["benchmark"], found["dtype"]) == ("score", dtype)
    assert found["machine"]["threads"] == 1
    assert any("scaled, not measured" in note for note in found["notes"])
    expected = [(33, m, name) for m in (5, 70) for name in (*backends, "unbatched", "peer")]
    assert [(cell["n"], cell["m"], cell["backend"]) for cell in found["cells"]] == expected
    for cell in found["cells"]:
        check_cell(cell, dtype, busy=True)
        assert (cell["phase"], cell["shape"], cell["k"], cell["dtype"]) == ("score", "tiny", 0, dtype)
        work = score_work(SHAPES["tiny"], 33, cell["m"])
        flops = PEAKS.flops(getattr(torch, dtype))
        assert cell["floor_ms"] == pytest.approx(1e3 * (work.flops / flops + work.silus / PEAKS.silus))
        if cell["backend"] == "peer":
            assert cell["microbatch"] is cell["instead_ms"] is cell["speedup"] is None
        else:
            assert cell["speedup"] == pytest.approx(cell["instead_ms"] / cell["ms"])
            assert cell["work_ratio"] > 1
        if cell["backend"] == "unbatched":
            assert cell["microbatch"] == cell["m"]
    sizes = {sweep["backend"]: [point["microbatch"] for point in sweep["points"]] for sweep in found["sweeps"]}
    assert sizes == {name: [64, 70] if name == "reference" else [48, 70] for name in backends}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_append_json(dtype: str) -> None:
    """Where the history fills its pages, where it does not, and where it fills none."""
    backends = [choice.name for choice in runnable(torch.device("cpu"), getattr(torch, dtype))]
    asked = [word for name in backends for word in ("--backend", name)]
    lengths, events = (1, 64, 70), (1, 7)
    given = [word for n in lengths for word in ("--n", str(n))] + [word for k in events for word in ("--k", str(k))]
    found = only_object(invoke("append", *TINY, *given, "--dtype", dtype, *asked, "--json"))
    assert set(found) == TOP
    cells = {(cell["n"], cell["backend"], cell["phase"], cell["k"]): cell for cell in found["cells"]}
    ways = [("prefill", None), *(("append", k) for k in events)]
    assert list(cells) == [(n, name, way, k or n) for n in lengths for name in backends for way, k in ways]
    for (n, name, phase, k), cell in cells.items():
        check_cell(cell, dtype, busy=False)
        assert (cell["m"], cell["microbatch"]) == (0, None)
        work = prefill_work(SHAPES["tiny"], n) if phase == "prefill" else append_work(SHAPES["tiny"], n, k)
        seconds = work.seconds(PEAKS.flops(getattr(torch, dtype)), PEAKS.silus)
        assert cell["floor_ms"] == pytest.approx(1e3 * seconds)
        if phase == "prefill":
            assert cell["fork_ms"] is cell["instead_ms"] is cell["speedup"] is None
        else:
            assert cell["fork_ms"] > 0
            assert cell["instead_ms"] == cells[n, name, "prefill", n]["ms"]
            assert cell["speedup"] == pytest.approx(cell["instead_ms"] / cell["ms"])


def test_the_portable_kernels_are_measured_by_name_alone() -> None:
    names = [choice.name for choice in runnable(torch.device("cpu"), torch.float32)]
    assert backends_here((), torch.float32) == [name for name in names if name != "portable_f32"]
    assert backends_here(("portable_f32", "reference", "portable_f32"), torch.float32) == ["portable_f32", "reference"]


def test_unbatched_is_measured_unless_backends_are_named() -> None:
    options = ScoreOptions(("tiny",), (3,), (2,), seconds=0)
    assert [cell.backend for cell in bench_score.run(options, print).cells][-1] == "unbatched"
    named = ScoreOptions(("tiny",), (3,), (2,), ("reference",), seconds=0)
    assert [cell.backend for cell in bench_score.run(named, print).cells] == ["reference"]


def test_tables_say_what_is_scaled_and_what_is_skipped() -> None:
    reference = ("--backend", "reference", "--n", "33")
    shown = invoke("score", *TINY, *reference, "--m", "5", "--peer", "--masked-gib", "0").stdout
    assert "* scaled, not measured" in shown
    assert "its mask and scores would need 0.0 GiB, the limit is 0" in shown
    assert "float32 1000 GFLOP/s (matmul)" in shown
    assert "fork" in invoke("append", *TINY, *reference, "--k", "3").stdout


@pytest.mark.parametrize("command", [("score", "--m", "5", "--m", "7", "--peer"), ("append", "--k", "1", "--busy")])
def test_a_result_is_drawn_and_rendered(command: tuple[str, ...], tmp_path: Path) -> None:
    picture, result = tmp_path / "plot.png", tmp_path / "result.json"
    sizes = ("--n", "33", "--n", "64", "--backend", "reference")
    drawn = {"--plot": picture} | ({"--plot-latency": tmp_path / "ms.png"} if command[0] == "score" else {})
    plots = [word for option, path in drawn.items() for word in (option, str(path))]
    result.write_text(invoke(*command, *TINY, *sizes, *plots, "--json").stdout)
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in drawn.values())
    shown = invoke("tables", str(result)).stdout
    rows = [line for line in shown.splitlines() if line.startswith("| tiny")]
    assert len(rows) >= len(json.loads(result.read_text())["cells"])
    grids = [part.splitlines() for part in shown.split("\n\n") if part.startswith("|")]
    for lines in grids:
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("| -")


def test_tables_of_what_is_no_result_are_refused(tmp_path: Path) -> None:
    for content in ("{", "{}", '{"benchmark": "chaos"}'):
        (tmp_path / "other.json").write_text(content)
        refused = CliRunner().invoke(bench.app, ["tables", str(tmp_path / "other.json")])
        assert isinstance(refused.exception, ConfigError) and "got no result of score, append" in str(refused.exception)


def test_plot_without_matplotlib_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["score", *TINY, "--n", "3", "--m", "5", "--backend", "reference", "--plot", str(tmp_path / "plot.png")]
    result = CliRunner().invoke(bench.app, arguments)
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "matplotlib" in str(result.exception)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="shape: got 'XL', must be one of S, B, tiny"):
        bench_score.run(ScoreOptions(shapes=("XL",)), print)
    with pytest.raises(ConfigError, match="dtype: got 'int8', must be one of float32, bfloat16"):
        bench_append.run(AppendOptions(dtype="int8"), print)
    for run in (
        lambda: bench_score.run(ScoreOptions(("tiny",), (3,), backends=("eager",)), print),
        lambda: bench_append.run(AppendOptions(("tiny",), (3,), backends=("eager",)), print),
    ):
        with pytest.raises(ConfigError, match="backend: got 'eager', must be one of auto, reference"):
            run()


def test_the_best_microbatch_has_the_least_median() -> None:
    points = tuple(SweepPoint(size, Spread(ms, 0, 9, 3)) for size, ms in ((32, 3.0), (64, 1.0), (128, 2.0)))
    assert Sweep("S", 1, 1, "reference", points).best == 64


def test_competitors_take_turns() -> None:
    order: list[str] = []
    actions = {name: always(partial(order.append, name)) for name in ("a", "b")}
    samples = take_turns(actions, seconds=0, min_rounds=2, max_rounds=9)
    assert order == ["a", "b", "a", "b"]
    assert {name: (len(of.quiet), len(of.busy)) for name, of in samples.items()} == {"a": (2, 0), "b": (2, 0)}


def test_quiet_and_busy_rounds_take_turns() -> None:
    order: list[str] = []

    class Recorded(Neighbour):
        def __init__(self) -> None:
            pass

        @contextmanager
        def working(self) -> Iterator[None]:
            order.append("(")
            yield
            order.append(")")

    actions = {name: always(partial(order.append, name)) for name in ("a", "b")}
    samples = take_turns(actions, seconds=0, min_rounds=2, max_rounds=9, busy=Recorded())
    assert "".join(order) == "ab(ab)ab(ab)"
    assert {name: (len(of.quiet), len(of.busy)) for name, of in samples.items()} == {"a": (2, 2), "b": (2, 2)}


def test_one_that_has_had_its_time_sits_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def lasting(seconds: float) -> None:
        clock[0] += seconds

    actions = {"slow": always(lambda: lasting(10.0)), "quick": always(lambda: lasting(1.0))}
    samples = take_turns(actions, seconds=4, min_rounds=2, max_rounds=9)
    assert {name: of.quiet for name, of in samples.items()} == {"slow": [10.0] * 2, "quick": [1.0] * 4}


def test_what_prepares_a_run_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def prepare() -> Any:
        clock[0] += 5.0

        def run() -> None:
            clock[0] += 2.0

        return run

    assert take_turns({"run": prepare}, 0, 1, 1)["run"].quiet == [2.0]


def test_a_cell_says_what_its_samples_do() -> None:
    samples = Samples([0.004, 0.001, 0.002, 0.003, 0.005], [0.006, 0.003])
    cell = measured("score", "S", 9, samples, 1.5, dtype="float32", backend="x", instead_ms=30.0, worst_difference=0.0)
    assert (cell.ms, cell.ms_spread, cell.ms_quartiles, cell.num_samples) == (3.0, (1.0, 5.0), (2.0, 4.0), 5)
    assert (cell.fraction, cell.speedup, cell.busy_ms_spread) == (0.5, 10.0, (3.0, 6.0))
    assert cell.busy_ms == pytest.approx(4.5)
    assert cell.busy_ratio == pytest.approx(1.5)
    assert spread([0.003, 0.001, 0.002]) == Spread(2.0, 1.0, 3.0, 3)


def test_peaks_are_positive_and_the_faster_of_two_wins() -> None:
    found = probe(0.0)
    assert min(found.float32_flops, found.bfloat16_flops, found.silus) > 0
    a = Peaks(3.0, "matmul", 1.0, "matmul", 5.0, "torch")
    b = Peaks(2.0, "packed linear", 4.0, "packed linear", 6.0, "avx2_f32")
    assert faster(a, b) == faster(b, a) == Peaks(3.0, "matmul", 4.0, "packed linear", 6.0, "avx2_f32")


def test_a_bfloat16_product_may_be_computed_in_float32() -> None:
    peaks_here = Peaks(3.0, "", 1.0, "", 5.0, "")
    assert (peaks_here.flops(torch.float32), peaks_here.flops(torch.bfloat16)) == (3.0, 3.0)
    assert Peaks(3.0, "", 7.0, "", 5.0, "").flops(torch.bfloat16) == 7.0


def test_without_a_compiler_the_peak_of_silu_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_library, "find_compiler", lambda: None)
    monkeypatch.setattr(peaks, "_compiled_silu", peaks._compiled_silu.__wrapped__)
    assert probe(0.0).silus_by == "torch"

"""The device benchmarks, end to end in Triton's interpreter: right first, every cell written, bars that say so."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from kernels.gpu import configs
from kernels.gpu.configs import AttentionConfig, Library
from loadtest.bench import gpu_estimates, gpu_splits, gpu_stacks, gpu_tune
from loadtest.bench import kernels as bench_kernels
from loadtest.bench.floor import append_work, prefill_work
from loadtest.bench.floor import score_work as score_floor
from loadtest.bench.gpu_cases import PREFIX, TARGET, TINY, Case, grid
from loadtest.bench.gpu_record import CELL, Record
from loadtest.bench.gpu_run import ROOT
from loadtest.bench.gpu_stacks import MASKED, RECORDING, REQUEST, SCORE, StackCell, StackOptions, StackResult
from loadtest.bench.gpu_steps import CASES as HEADLINES
from loadtest.bench.gpu_timing import Ceilings, DeviceTimer, place
from loadtest.bench.gpu_worlds import DLRM_V3, NVIDIA, StackSpec, World, encode_work, score_work
from loadtest.bench.gpu_worlds import TINY as TINY_STACKS
from loadtest.bench.kernels import KernelOptions, KernelResult
from loadtest.bench.shapes import Shape
from loadtest.report.machine import this_machine
from loadtest.report.result import Bar, bar_table, write_json
from loadtest.report.table import Table, as_markdown, as_text
from loadtest.report.timing import Spread
from mfalcon.cli import bench
from mfalcon.errors import ConfigError
from tests.device import INTERPRETED

TOP = {"benchmark", "machine", "commit", "notes", "ceilings", "cells", "bars"}
quick_only = pytest.mark.skipif(not INTERPRETED, reason="tiny runs are for the interpreter")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(bench.app, list(arguments))


def only_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    parsed = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert isinstance(parsed, dict)
    return parsed


@quick_only
def test_kernels_json() -> None:
    found = only_object(invoke("kernels", "--quick", "--json"))
    assert set(found) == TOP | {"left"} and found["benchmark"] == "kernels"
    machine = found["machine"]
    assert machine["device"] == "interpreter, no timing claims" and machine["triton"] and machine["driver"] is None
    assert {(cell["case"]["op"], cell["case"]["codes"]) for cell in found["cells"]} == {
        (TARGET, "none"),
        (TARGET, "int8"),
        (PREFIX, "none"),
    }
    ceilings = Ceilings(**found["ceilings"][0])
    for cell in found["cells"]:
        assert cell["error"] is None and 0 < cell["relative_error"] <= cell["error_bound"]
        assert 0 < cell["ms"]["min_ms"] <= cell["ms"]["median_ms"]
        roofline = ceilings.seconds(cell["flops"], cell["num_bytes"]) * 1e3
        assert cell["roofline_ms"] == pytest.approx(roofline)
        assert cell["fraction"] == pytest.approx(roofline / cell["ms"]["median_ms"])
        assert [other["name"] for other in cell["beside"]] == ["torch eager", "torch.compile", "dense masked"]
        eager, compiled, masked = cell["beside"]
        assert "CUDA" in compiled["skipped"] and compiled["ms"] is None
        assert eager["ms"]["median_ms"] > 0 and masked["ms"]["median_ms"] > 0
        assert eager["relative_error"] < 2e-2 and masked["relative_error"] < 2e-2
    assert all(bar["value"] is None and bar["holds"] is None for bar in found["bars"])


@quick_only
def test_a_wrong_kernel_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off by 2%, by one row, by what was never written."""
    honest = bench_kernels.launch

    def planted(change: Callable[[Tensor], Tensor]) -> KernelResult:
        monkeypatch.setattr(bench_kernels, "launch", lambda *given, **how: change(honest(*given, **how)))
        return bench_kernels.run(KernelOptions((TINY[0],), quick=True), lambda _: None)

    def last_row_missing(out: Tensor) -> Tensor:
        out[:, -1] = 0.0
        return out

    def unwritten(out: Tensor) -> Tensor:
        out[:, 7, 1, 3] = torch.empty(1)[0]
        return out

    for change in (lambda out: out * 1.02, last_row_missing, unwritten):
        result = planted(change)
        assert len(result.errors) == 1 and result.cells[0].ms is None and not result.cells[0].beside
        assert "ERROR" in as_text(bench_kernels.page(result))
    monkeypatch.setattr(bench_kernels, "TINY", TINY[:1])
    answer = invoke("kernels", "--quick")
    assert answer.exit_code == 1 and "differs from float64" in answer.output
    answer = invoke("kernels", "--quick", "--json")
    assert answer.exit_code == 1 and json.loads(answer.stdout)["cells"][0]["error"]


def test_counts_by_hand() -> None:
    target = Case(TARGET, n=10, m=3, head_dim=8, batch=2, num_heads=4)
    assert target.flops == 2 * 3 * 11 * 4 * (2 * 8 + 2 * 8)
    rows, keys = 2 * 3 * 4 * 8, 2 * 10 * 4 * 8
    assert target.num_bytes == 4 * 2 * rows + 2 * 2 * keys
    coded = Case(TARGET, n=10, m=3, head_dim=8, batch=2, num_heads=4, codes="int8")
    assert coded.num_bytes == 4 * 2 * rows + 2 * (keys + 4 * 2 * 10 * 4)
    appended = Case(PREFIX, n=10, m=3, head_dim=8, batch=1, num_heads=4, dtype="float32")
    assert appended.flops == (8 + 9 + 10) * 4 * 32
    assert appended.num_bytes == 2 * 4 * 3 * 4 * 8 + 2 * 4 * 10 * 4 * 8


def test_the_grid_has_what_was_asked_for_and_the_bar_first() -> None:
    cases = grid()
    assert {case.n for case in cases} == {256, 1024, 4096, 16384} and {case.batch for case in cases} == {1, 8, 32}
    assert {case.head_dim for case in cases} == {64, 128, 256}
    assert {min(case.m for case in cases), max(case.m for case in cases)} == {64, 16384}
    assert {case.codes for case in cases} == {"none", "int8", "fp8"} and len(set(cases)) == len(cases)
    long = [case for case in cases if case.op == TARGET and case.n >= 4096 and case.m >= 1024]
    of_bar = {case for case in long if case.head_dim == 128 and case.batch == 1 and case.codes == "none"}
    assert set(cases[: len(of_bar) + 4]) >= of_bar
    assert all(case.m <= case.n for case in cases if case.op == PREFIX)


def test_stack_counts_are_the_floor_s_where_both_count() -> None:
    shape, spec = Shape("x", 3, 64, 2), StackSpec("x", 3, 64, 2, 32, "uvqk", "gated")
    assert score_work(spec, [40], 7).flops == score_floor(shape, 40, 7).flops
    assert encode_work(spec, [40], 0).flops == prefill_work(shape, 40).flops
    assert encode_work(spec, [40], 30).flops == append_work(shape, 30, 10).flops
    twice = encode_work(spec, [40, 40], 0).flops
    assert twice == 2 * prefill_work(shape, 40).flops
    concat = StackSpec("x", 1, 64, 2, 32, "u", "concat")
    assert score_work(concat, [40], 7).flops == 7 * (14 * 64 * 64 + 4 * 64 * 41)
    assert score_work(concat, [40], 7).num_bytes == 2 * (7 * 64 * 64 + 2 * 64 * 40 + 2 * 7 * 64)


@quick_only
def test_stacks_json() -> None:
    found = only_object(invoke("score", "--device", "cuda", "--quick", "--json"))
    assert set(found) == TOP | {"dtype", "laws", "left"} and found["benchmark"] == "stacks"
    assert found["laws"] and all(0 <= law["worst"] <= law["bound"] for law in found["laws"])
    statements = {law["statement"] for law in found["laws"]}
    assert {
        "batch-mates move no score",
        "append to a prefill = prefill",
        "a replayed graph = its launches",
    } < statements
    assert {"prefill and score = reference", "one masked forward = cached scores"} < statements
    paths = {(cell["stack"], cell["path"], cell["cached"], cell["graph"]) for cell in found["cells"]}
    assert {
        ("tiny-gated", REQUEST, 0, True),
        ("tiny-gated", REQUEST, 16, True),
        ("tiny-gated", MASKED, 0, False),
    } < paths
    assert {("tiny-concat", SCORE, 9, False), ("tiny-concat", SCORE, 9, True)} < paths
    for cell in found["cells"]:
        assert cell["device_ms"] is None and cell["fraction"] is None
        assert (cell["request_ms"] is None) == (cell["skipped"] is not None)
    assert len(found["bars"]) == 6 and all(bar["holds"] is None for bar in found["bars"])


@quick_only
def test_a_scenario_whose_law_is_red_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes no other with it."""
    honest = World.checks

    def checks(world: World, num_targets: int) -> Iterator[tuple[str, float]]:
        return iter([("planted", float("nan"))]) if world.scenario is TINY_STACKS[0] else honest(world, num_targets)

    monkeypatch.setattr(gpu_stacks, "float32_error", lambda *_: 0.0)
    monkeypatch.setattr(World, "checks", checks)
    saved: list[StackResult] = []
    result = gpu_stacks.run(StackOptions(quick=True), lambda _: None, saved.append)
    assert result.broken and saved[-1].broken
    assert {cell.scenario for cell in result.cells} == {TINY_STACKS[1].name}
    assert "RED tiny-concat" in as_text(gpu_stacks.page(result))
    answer = invoke("score", "--device", "cuda", "--quick")
    assert answer.exit_code == 1 and "not measured" in answer.output


@quick_only
def test_what_runs_out_of_pages_is_a_failed_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cells that need no more pages are timed all the same, and so are other scenarios."""
    honest = World.replayed

    def replayed(world: World, microbatch: int) -> float:
        if world.scenario is TINY_STACKS[0]:
            world.pool.empty().extend(torch.zeros(1 << 20, dtype=torch.int64))
        return honest(world, microbatch)

    monkeypatch.setattr(World, "replayed", replayed)
    found: list[object] = []
    options = StackOptions(quick=True, with_float32=False)
    result = gpu_stacks.run(options, lambda _: None, write=found.append)
    (failed,) = [cell for cell in result.cells if cell.error]
    assert failed.scenario == TINY_STACKS[0].name and failed.path == RECORDING and "pages" in str(failed.error)
    timed = {(cell.scenario, cell.path) for cell in result.cells if cell.request_ms is not None}
    assert {(scenario.name, REQUEST) for scenario in TINY_STACKS} < timed
    assert [*result.laws, *result.cells] == sorted(found, key=lambda each: isinstance(each, StackCell))


def test_bars_of_stacks() -> None:
    def cell(stack: str, users: int, m: int, path: str, ms: float, cached: int = 0, name: str = "s") -> StackCell:
        return StackCell(
            stack=stack,
            scenario=name,
            users=users,
            n_min=1,
            n_max=1,
            m=m,
            path=path,
            cached=cached,
            graph=path == SCORE,
            microbatch=m,
            device_ms=Spread(ms, ms, ms, 1),
            request_ms=Spread(ms, ms, ms, 1),
            flops=1,
            num_bytes=1,
            floor_ms=0.1,
            fraction=0.1,
        )

    cells = [
        cell(DLRM_V3.name, 32, 2048, REQUEST, 6.0),
        cell(DLRM_V3.name, 32, 2048, SCORE, 4.3),
        cell(DLRM_V3.name, 1, 256, SCORE, 0.2),
        *(cell(DLRM_V3.name, 1, m, path, ms) for m in (512, 2048) for path, ms in ((REQUEST, 3.0), (SCORE, 1.0))),
        *(cell(NVIDIA.name, 1, 256, REQUEST, ms, cached) for cached, ms in ((0, 2.0), (3968, 1.0))),
        cell(NVIDIA.name, 1, 256, MASKED, 3.9),
    ]
    bars = gpu_stacks.bars(cells)
    assert [bar.holds for bar in bars] == [True, False, True, True, False, False]
    assert [bar.value for bar in bars] == [6.0, 4.3, 0.2, 3.0, 3.0, 1.95]
    assert bars[-1].by == "s, 0 cached"
    shown = as_text([bar_table([*bars, *gpu_stacks.bars(())])])
    assert shown.count(" NO ") == 3 and shown.count("not measured") == 6


@quick_only
def test_tuning_keeps_what_is_right_and_faster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "interpreter.json").write_text('{"other": {"block_n": 1, "num_warps": 1, "num_stages": 1}}')
    times = iter([1.0, 0.5, 0.9])
    monkeypatch.setattr(DeviceTimer, "device", lambda *_: Spread(next(times), 0.1, 2.0, 1))
    (tuned,) = gpu_tune.tune(tmp_path, lambda _: None, quick=True)
    assert tuned.kept and not tuned.rejected and tuned.config == gpu_tune.ATTENTION[0]
    stored = json.loads((tmp_path / "interpreter.json").read_text())
    assert set(stored) == {"other", tuned.key} and AttentionConfig(**stored[tuned.key]) == tuned.config
    monkeypatch.setattr(configs, "TUNED", tmp_path)
    assert configs._stored.__wrapped__("interpreter") == stored
    assert "Tuned" in as_text([gpu_tune.table([tuned])])


def test_projections_stand_beside_the_library() -> None:
    """Of a layer's rows, and as a choice that a stored file may take."""
    assert gpu_tune.LINEAR[0] == Library()
    jobs = [job for job in gpu_tune.headline_jobs(torch.device("meta")) if job.name.startswith("linear")]
    assert all(job.beside is not None for job in jobs)
    assert {job.name for job in jobs} >= {f"linear {rows} x 512 -> 2048" for rows in (256, 2048, 65_536)}


@quick_only
def test_what_has_no_room_ends_alone(tmp_path: Path) -> None:
    """Inputs of a case, or of a job of the tuner, that a device refuses."""
    bad = replace(TINY[0], codes="none such")
    where = place(0.0, 1e9, quick=True)
    cells: list[gpu_splits.SplitCell] = []
    gpu_splits.sweep(where, cells.append, (bad, bad))
    assert [cell.case for cell in cells if cell.error] == [bad, bad]

    def wanted(device: torch.device) -> Iterator[gpu_tune.Job]:
        def refused(_: int) -> None:
            raise torch.OutOfMemoryError("as much as that")

        yield gpu_tune.Job("large", refused, torch.bfloat16)
        yield from gpu_tune.jobs(device)

    failed: list[str] = []
    (tuned,) = gpu_tune.tune(
        tmp_path, lambda _: None, where=where, wanted=wanted, quick=True, failed=lambda *why: failed.extend(why)
    )
    assert failed == ["large", "OutOfMemoryError: as much as that"] and tuned.job != "large"


@quick_only
def test_a_candidate_that_is_wrong_is_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    honest = gpu_tune._output

    def output(job: gpu_tune.Job) -> Tensor:
        calls.append(job.name)
        return honest(job) * (1.0 if len(calls) == 1 else 1.1)

    calls: list[str] = []
    monkeypatch.setattr(gpu_tune, "_output", output)
    (tuned,) = gpu_tune.tune(tmp_path, lambda _: None, quick=True)
    assert not tuned.kept and len(tuned.rejected) >= 1 and tuned.config == tuned.default
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is no device")
def test_without_a_device_it_says_so() -> None:
    for arguments in (("kernels",), ("score", "--device", "cuda")):
        answer = invoke(*arguments)
        assert isinstance(answer.exception, ConfigError) and "no CUDA device" in str(answer.exception)
    refused = invoke("score", "--device", "cuda", "--quick", "--n", "64")
    assert isinstance(refused.exception, ConfigError) and "--device" in str(refused.exception)
    unknown = invoke("score", "--device", "cuda", "--quick", "--shape", "S")
    assert isinstance(unknown.exception, ConfigError) and "tiny-concat" in str(unknown.exception)


def test_the_cpu_s_results_keep_their_fields() -> None:
    machine = this_machine()
    assert machine.device is None and machine.driver is None and machine.triton is None


def test_reports(tmp_path: Path) -> None:
    table = Table("T", ("name", "x"), [("a", "1.5"), ("bb", "20")])
    assert as_text(["before", table]).splitlines() == [
        *("before", ""),
        *("T", "name    x", "----  ---", "a     1.5", "bb     20"),
    ]
    assert as_markdown([table]).splitlines() == [
        *("T", "", "| name | x |"),
        *("| --- | --- |", "| a | 1.5 |", "| bb | 20 |"),
    ]
    assert Bar.most("a", 1.0, 1.0).holds is True and Bar.least("a", 1.0, 1.0).holds is True
    assert Bar.most("a", 1.1, 1.0).holds is False and Bar.least("a", 0.9, 1.0).holds is False
    assert Bar.most("a", None, 1.0).holds is None and Bar.least("a", None, 1.0).holds is None
    write_json(tmp_path / "deep" / "x.json", Spread(1.0, float("inf"), 2.0, 1))
    assert json.loads((tmp_path / "deep" / "x.json").read_text())["min_ms"] == "inf"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]


def test_every_headline_is_estimated_and_has_its_measurement(tmp_path: Path) -> None:
    """docs/gpu.md has the tables; what is measured replaces a dash, cell by cell."""
    shown = (ROOT / "docs" / "gpu.md").read_text().splitlines()
    spread = {"median_ms": 1.25, "min_ms": 1.0, "max_ms": 2.0, "num_samples": 5}
    engine, kernels = Record(tmp_path / "r", "engine"), Record(tmp_path / "r", "hopper")
    estimated = [table for table in gpu_estimates.page([]) if isinstance(table, Table)]
    for row in (row for table in estimated for row in table.rows):
        counted = "| " + " | ".join(cell for cell in row if cell != gpu_estimates.NONE_YET) + " |"
        assert any(line.startswith(counted) for line in shown), counted
    for one in gpu_estimates.stacks():
        fields = {"stack": one.scenario.spec.name, "scenario": one.scenario.name, "path": one.path, "graph": one.graph}
        sizes = {"cached": one.cached if one.path != SCORE else min(one.scenario.lens), "microbatch": one.microbatch}
        Record(tmp_path / "r", "batch").add(CELL, {**fields, **sizes, "device_ms": spread})
    for rank in gpu_estimates.ranks():
        engine.add(CELL, {"name": rank.name, "p50_ms": 0.25, "per_second": 4000.0})
    for case in HEADLINES:
        kernels.add(CELL, {"case": asdict(case), "plain_ms": spread, "hopper_ms": spread})
    measured = [table for table in gpu_estimates.page([tmp_path / "r"]) if isinstance(table, Table)]
    assert not [row for table in measured for row in table.rows if gpu_estimates.NONE_YET in row]
    assert {row[-1] for row in measured[0].rows} == {"1.25"} and {row[-1] for row in measured[2].rows} == {"1250"}

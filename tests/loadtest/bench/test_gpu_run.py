"""The run of a machine with a device, rehearsed without one: its steps, what they import, launch and compile."""

import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from loadtest.bench import gpu_all, gpu_checks, gpu_run
from loadtest.bench.gpu_device_tests import FILES, outcomes
from loadtest.bench.gpu_record import CELL, LAW, REHEARSED, STEP, Record, read
from loadtest.bench.gpu_run import Planned
from loadtest.bench.gpu_wheels import MEASURING, PRESENT, missing, unpack
from loadtest.report.timing import Spread

PYTHON = (sys.executable, "-c")
LACKING = (
    *("redis", "hiredis", "opentelemetry", "pytest_asyncio", "fastapi", "orjson", "typer", "uvicorn", "sklearn"),
    *("polars", "grpc_tools", "grpc", "msgspec", "zmq", "xxhash", "safetensors", "cachetools", "prometheus_client"),
)
"""What the machines that were seen lack, and what else is not carried for the measurements."""
SERVER_ONLY = ("fastapi", "uvicorn", "orjson", "msgspec", "zmq", "grpc", "grpc_tools", "typer", "sklearn", "polars")
"""What the tests of a device and the engine do without, whether it is carried or not."""
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process that compiles kernels instead of interpreting them."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=gpu_run.ROOT, env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def test_no_step_ends_another(tmp_path: Path) -> None:
    plan = [
        Planned("beside", (*PYTHON, "print('seen')"), 30, beside=True),
        Planned("broken", (*PYTHON, "raise SystemExit(3)"), 30),
        Planned("slow", (*PYTHON, "import time; time.sleep(60)"), 0.2),
        Planned("told", (*PYTHON, "import sys; print(sys.argv[1])", "{seconds}"), 30),
    ]
    record = tmp_path / "record"
    outcomes = gpu_run.run(plan, tmp_path, record, 60, {})
    assert [(each.name, each.result) for each in outcomes] == [
        *(("beside", "passed"), ("broken", "failed"), ("slow", "out of time"), ("told", "passed")),
    ]
    assert (tmp_path / "beside.log").read_text() == "seen\n" and int((tmp_path / "told.log").read_text()) == 25
    assert [line["result"] for line in read(record, STEP)] == [each.result for each in outcomes]
    assert {each.result for each in gpu_run.run(plan, tmp_path, record, 1, {})} == {"dropped: the time is up"}


def test_a_record_outlives_a_kill(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", "a")
    record.add(CELL, Spread(1.0, float("nan"), 2.0, 3))
    with record.path.open("a") as file:
        file.write('{"step": "a", "kind": "ce')
    assert read(record.path, CELL) == [
        {"step": "a", "kind": CELL, "median_ms": 1.0, "min_ms": "nan", "max_ms": 2.0, "num_samples": 3}
    ]


def test_wheels_are_unpacked_and_looked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
        wheel.writestr("carried/inside.py", "")
    assert unpack(tmp_path, tmp_path / "site") == 1
    names = ("carried", "carried.inside", "carried.absent", "absent", "absent.inside")
    assert missing(names, [str(tmp_path / "site")]) == ["carried.absent", "absent", "absent.inside"]
    assert missing((*PRESENT[:1], *MEASURING), sys.path) == []


def test_what_is_missing_is_said_before_the_clock_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no_such_package.*make gpu-wheels"):
        gpu_run.prepared(tmp_path, None, ("no_such_package",))


@needs_triton
def test_the_steps_import_only_what_is_carried() -> None:
    modules = ("gpu_all", "gpu_steps", "gpu_prewarm", "gpu_profile", "gpu_bars")
    code = f"""{BLOCKED.format(LACKING)}
from importlib import import_module
for module in {modules}:
    import_module("loadtest.bench." + module)
print(*[step.name for step in sys.modules["loadtest.bench.gpu_steps"].STEPS])
"""
    ended = python("-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == [name for name in gpu_all.MOST_S if name not in ("prewarm", "bars")]


@needs_triton
def test_a_step_is_rehearsed_to_its_last_cell(tmp_path: Path) -> None:
    record = tmp_path / "record"
    ended = python("-m", "loadtest.bench.gpu_steps", "correctness", "--record", str(record), "--rehearse")
    assert ended.returncode == 0, ended.stderr
    cells, (line,) = read(record, CELL), read(record, REHEARSED)
    assert [cell["path"] for cell in cells] == ["encode", "score", "score", "request", "masked"]
    assert not [cell for cell in cells if cell["error"] or (cell["device_ms"] is None and not cell["skipped"])]
    assert line["launches"] > 100 and line["specialisations"] > 10 and line["predicted_s"] > 1 and not line["wrong"]


def rehearsed(script: str, out: Path) -> None:
    ended = python("-m", f"loadtest.bench.{script}", "--out", str(out), "--rehearse", "--seconds", "10000")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.thorough
@needs_triton
def test_the_whole_run_is_rehearsed(tmp_path: Path) -> None:
    rehearsed("gpu_all", tmp_path)
    record = tmp_path / "gpu.jsonl"
    assert [line["step"] for line in read(record, STEP)] == list(gpu_all.MOST_S)
    assert not [cell for cell in read(record, CELL) if cell.get("error")]
    assert len(read(record, CELL)) > 100 and not [line for line in read(record, REHEARSED) if line["wrong"]]


@pytest.mark.thorough
@needs_triton
def test_the_checks_are_rehearsed(tmp_path: Path) -> None:
    rehearsed("gpu_checks", tmp_path)
    record = tmp_path / "gpu.jsonl"
    assert {line["step"] for line in read(record, STEP)} == set(gpu_checks.MOST_S)
    assert not [cell for cell in read(record, CELL) if cell.get("error")]
    engine = [cell["name"] for cell in read(record, CELL) if cell["step"] in ("engine", "grpc")]
    assert engine == ["cached", "16 new events", "from the host", "at once", "through gRPC"]
    assert {law["law"] for law in read(record, LAW)} == {1, 2, 3, 4, 5, 6, 7}


def test_every_test_of_a_device_is_among_the_files() -> None:
    marked = {
        str(path.relative_to(gpu_run.ROOT))
        for path in (gpu_run.ROOT / "tests").rglob("test_*.py")
        if re.search(r"^(@|pytestmark = )pytest\.mark\.gpu", path.read_text(), re.MULTILINE)
    }
    assert marked == set(FILES)


@needs_triton
def test_the_tests_of_a_device_are_collected_with_what_is_carried() -> None:
    arguments = ["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *FILES]
    ended = python("-c", f"{BLOCKED.format(SERVER_ONLY)}\nimport pytest\nsys.exit(pytest.main({arguments}))")
    assert ended.returncode == 0, ended.stdout
    assert sum("::" in line for line in ended.stdout.splitlines()) >= 37


def test_outcomes_are_read_off_pytest() -> None:
    told = "PASSED tests/a.py::test_b[x-1]\nFAILED tests/a.py::test_c - assert 1 == 2\nSKIPPED [1] tests/a.py:3: no\n"
    assert outcomes(told) == {"tests/a.py::test_b[x-1]": "passed", "tests/a.py::test_c": "failed"}


WARM = """
import sys
import torch
from loadtest.bench.gpu_pretend import META, H100, pretended
from loadtest.bench.gpu_prewarm import compiled, pretend
from kernels.gpu.norms import layer_norm
from triton.runtime.jit import JITFunction

x = torch.empty(333, 80, dtype=torch.bfloat16, device=META)
with pretended() as launches:
    layer_norm(x, x[0], x[0], 1e-6)
if sys.argv[-1] == "ahead":
    pretend(90)
    for one in launches.found.values():
        compiled(one)
else:  # as a launch has it, but for the launch
    honest = JITFunction.run
    JITFunction.run = lambda kernel, *args, grid, warmup, **more: honest(kernel, *args, grid=grid, warmup=True, **more)
    layer_norm(x, x[0], x[0], 1e-6)
"""


@needs_triton
def test_what_is_compiled_ahead_is_what_a_launch_finds(tmp_path: Path) -> None:
    found = []
    for way in ("ahead", "launch"):
        ended = python("-c", WARM, way, TRITON_CACHE_DIR=str(tmp_path), TRITON_DISABLE_LINE_INFO="1")
        assert ended.returncode == 0, ended.stderr
        found.append({path.name for path in tmp_path.iterdir()})
    ahead, launched = found
    assert len(ahead) == 1 and launched == ahead


CHECKED = """
import json
import torch
from kernels.gpu.norms import layer_norm_kernel
from loadtest.bench.gpu_pretend import META, Launches
launches = Launches()
x = torch.empty(4, 16, dtype=torch.bfloat16, device=META)
odd = torch.empty(65, dtype=torch.uint8, device=META)[1:].view(torch.uint8)
fine = {"X": x, "num_rows": 4, "num_warps": 4}
launches.note(layer_norm_kernel, fine, (4,))
assert not launches.wrong, launches.wrong
for more, grid in (
    ({}, (1, 1 << 16)), ({}, (0,)), ({"num_warps": 3}, (1,)), ({"X": x.double()}, (1,)), ({"X": x.T}, (1,)),
    ({"X": torch.empty(4, 16)}, (1,)), ({"num_rows": 1 << 31}, (1,)),
):
    launches.note(layer_norm_kernel, fine | more, grid)
print(json.dumps(launches.wrong))
"""


@needs_triton
def test_what_a_device_would_refuse_is_found() -> None:
    ended = python("-c", CHECKED)
    assert ended.returncode == 0, ended.stderr
    wrong = json.loads(ended.stdout)
    for text, line in zip(
        ("65536 is not within", "0 is not within", "num_warps 3", "float64", "not dense", "on cpu", "32 bits"),
        wrong,
        strict=True,
    ):
        assert text in line

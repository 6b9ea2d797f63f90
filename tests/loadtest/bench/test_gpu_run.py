"""The run of a machine with a device, rehearsed without one: its steps, what they import, launch and compile."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from importlib.metadata import files, requires
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from loadtest.bench import gpu_all, gpu_checks, gpu_device_tests, gpu_run, gpu_wheels
from loadtest.bench.gpu_device_tests import FILES, outcomes
from loadtest.bench.gpu_pool import Work
from loadtest.bench.gpu_record import AGAIN, CELL, LAW, LOST, REHEARSED, STEP, Record, Turns, read
from loadtest.bench.gpu_run import Planned
from loadtest.bench.gpu_wheels import missing, unpack
from loadtest.report.timing import Spread

PYTHON = (sys.executable, "-c")
WHEELS = Path(gpu_wheels.__file__).parent
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


ITEMS = """
import os, signal, sys, time
from pathlib import Path
from loadtest.bench.gpu_record import CELL, Record, Turns
ill = []
def wait():
    if ill:
        raise RuntimeError("an illegal address")
plain = "--plain" in sys.argv
record = Record(Path(sys.argv[1]), "step")
turns = Turns(record, wait)
print("sets up", turns.begin("setup", needed=True), flush=True)
for name in ("fine", "hopper", "dies", "hangs", "spoils", "raises", "last"):
    if turns.begin(name):
        if name == "dies" or (name == "hopper" and not plain):
            os.kill(os.getpid(), signal.SIGSEGV)
        elif name == "hangs":
            time.sleep(600)
        elif name == "spoils":
            ill.append(name)
        record.add(CELL, {"name": name})
"""


def test_a_step_goes_on_behind_what_ended_it(tmp_path: Path) -> None:
    """The first time it tries the same again, without the kernels for Hopper, and so do the steps that follow."""
    record = tmp_path / "record"
    plan = [
        Planned("step", (*PYTHON, ITEMS, str(record), "{plain}"), 600, stalled_s=5),
        Planned("next", (*PYTHON, "import sys; print(sys.argv[1:])", "{plain}"), 600),
    ]
    results = [each.result for each in gpu_run.run(plan, tmp_path, record, 600, {})]
    assert results[:4] == ["killed by signal 11", "killed by signal 11", "stood still", "lost the device"]
    assert results[4:] == ["passed", "passed"]
    assert [cell["name"] for cell in read(record, CELL)] == ["fine", "hopper", "spoils", "raises", "last"]
    assert [line["item"] for line in read(record, AGAIN)] == ["hopper"]
    assert [line["item"] for line in read(record, LOST)] == ["dies", "hangs", "spoils"]
    assert (tmp_path / "step.log").read_text().count("sets up True") == 5
    assert (tmp_path / "next.log").read_text() == "['--plain']\n"


def test_a_step_that_comes_no_further_is_not_begun_again(tmp_path: Path) -> None:
    plan = [Planned("step", (*PYTHON, "import os; os.kill(os.getpid(), 9)"), 30)]
    (outcome,) = gpu_run.run(plan, tmp_path, tmp_path / "record", 60, {})
    assert outcome.result == "killed by signal 9"


def test_what_needs_what_ended_the_process_is_left_out(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", "step")
    first = Turns(record)
    assert first.begin("setup", needed=True) and first.begin("cell")
    record.add(AGAIN, {"item": "cell"})
    second = Turns(record)
    assert second.begin("setup", needed=True) and second.begin("cell") and second.begin("setup of b", needed=True)
    record.add(LOST, {"item": "setup of b"})
    third = Turns(record)
    assert not third.begin("cell") and not third.begin("setup of b", needed=True)
    assert Turns(Record(record.path, "other")).begin("cell")


def test_nothing_that_a_step_has_begun_outlives_it(tmp_path: Path) -> None:
    orphan = "import subprocess as s, sys; print(s.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    gpu_run.run([Planned("step", (*PYTHON, orphan), 30)], tmp_path, tmp_path / "record", 60, {})
    state = Path(f"/proc/{int((tmp_path / 'step.log').read_text())}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":  # nobody may be there to reap it
        time.sleep(0.01)


def test_time_is_kept_for_the_last_step(tmp_path: Path) -> None:
    plan = [
        Planned("slow", (*PYTHON, "import time; time.sleep(60)"), 60),
        Planned("late", (*PYTHON, ""), 60),
        Planned("page", (*PYTHON, ""), 300, last=True),
    ]
    outcomes = gpu_run.run(plan, tmp_path, tmp_path / "record", 15.5, {})
    assert [each.result for each in outcomes] == ["out of time", "dropped: the time is up", "passed"]


def test_a_full_disk_loses_no_cell(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What finds no room is printed, by the step into its log, and from there by the script."""
    (tmp_path / "step.log").symlink_to("/dev/full")
    (tmp_path / "record").symlink_to("/dev/full")
    code = f"""
from pathlib import Path
from loadtest.bench.gpu_record import CELL, Record
for name in ("a", "b"):
    Record(Path({str(tmp_path / "record")!r}), "step").add(CELL, {{"name": name}})
"""
    (outcome,) = gpu_run.run([Planned("step", (*PYTHON, code), 30)], tmp_path, tmp_path / "record", 60, {})
    printed = capfd.readouterr().out
    assert outcome.result == "passed" and "No space left" in printed
    assert '"name": "a"}' in printed and '"name": "b"}' in printed and '"result": "passed"' in printed


def test_a_record_outlives_a_kill(tmp_path: Path) -> None:
    record = Record(tmp_path / "r", "a")
    record.add(CELL, Spread(1.0, float("nan"), 2.0, 3))
    with record.path.open("a") as file:
        file.write('{"step": "a", "kind": "ce')
    record.add(CELL, {"name": "next"})
    assert read(record.path, CELL) == [
        {"step": "a", "kind": CELL, "median_ms": 1.0, "min_ms": "nan", "max_ms": 2.0, "num_samples": 3},
        {"step": "a", "kind": CELL, "name": "next"},
    ]


def test_a_process_that_dies_costs_what_it_was_at() -> None:
    """Of what follows, most is done: here each says that there is no such signal."""
    items = [signal.SIGKILL, *range(-40, 0)]
    results = dict(Work(signal.raise_signal, 2, int).done(items, time.monotonic() + 600))
    assert set(results) == set(items) and "died" in str(results[signal.SIGKILL])
    assert sum(isinstance(error, OSError) for error in results.values()) >= 40 - 1


def listed(*files: str) -> dict[str, str]:
    """Versions by name."""
    lines = [line for file in files for line in (WHEELS / file).read_text().splitlines() if "==" in line]
    return dict(line.split("==") for line in lines)


def needed(names: Iterable[str]) -> set[str]:
    """Distributions, and what they require by what is installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub("[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def bare(folder: Path, distributions: Iterable[str]) -> Path:
    """A folder to import from that has these distributions alone, as links to what is installed here."""
    folder.mkdir()
    for name in distributions:
        for file in files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(file.locate())).parents[len(file.parts) - 1] / top)
    return folder


def test_the_wheels_need_no_others() -> None:
    present = needed(("torch", "numpy"))
    for carried in (("gpu_wheels.txt",), ("gpu_wheels.txt", "gpu_wheels_grpc.txt")):
        assert needed(listed(*carried)) - present <= set(listed(*carried)), carried


@needs_triton
def test_measurements_tests_and_engine_import_only_what_is_carried(tmp_path: Path) -> None:
    site = bare(tmp_path / "site", needed(("torch", "triton", "numpy")) | set(listed("gpu_wheels.txt")))
    code = f"""
import sys
sys.path = [path for path in sys.path if "site-packages" not in path] + [{str(site)!r}, {str(gpu_run.ROOT)!r}]
from importlib import import_module
for module in ("gpu_all", "gpu_prewarm", "gpu_profile", "gpu_bars", "gpu_laws", "gpu_engine", "gpu_check_steps"):
    import_module("loadtest.bench." + module)
assert all(name not in sys.modules for name in {gpu_wheels.SERVING})
print(*[step.name for step in sys.modules["loadtest.bench.gpu_steps"].STEPS])
import pytest
sys.exit(pytest.main(["-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider", *{FILES}]))
"""
    ended = python("-I", "-c", code)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    steps, *lines = ended.stdout.splitlines()
    assert steps.split() == [name for name in gpu_all.MOST_S if name not in ("prewarm", "bars")]
    assert sum("::" in line for line in lines) >= 37


@needs_triton
def test_a_server_imports_only_what_is_carried(tmp_path: Path) -> None:
    carried = listed("gpu_wheels.txt", "gpu_wheels_grpc.txt")
    site = bare(tmp_path / "site", needed(("torch", "triton", "numpy")) | set(carried))
    code = f"""
import sys
sys.path = [path for path in sys.path if "site-packages" not in path] + [{str(site)!r}, *{gpu_run.IMPORTED!r}]
import server.app, loadtest.bench.gpu_grpc
"""
    ended = python("-I", "-c", code)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_wheels_are_unpacked_and_tried(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "")
        wheel.writestr("wanting.py", "import nothing_like_it")
    assert unpack(tmp_path, tmp_path / "site") == 1
    found = missing(("carried", "wanting", "absent"), {"PYTHONPATH": str(tmp_path / "site")})
    assert [line.partition(":")[0] for line in found] == ["wanting", "absent"] and "nothing_like_it" in found[0]
    assert missing((), {}) == []


def test_what_is_missing_is_said_before_the_clock_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no_such_package.*make gpu-wheels"):
        gpu_run.prepared(tmp_path, None, ("no_such_package",))


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


def test_outcomes_are_read_off_pytest() -> None:
    told = "tests/a.py::test_b[x y-1] PASSED [ 3%]\ntests/a.py::test_c FAILED [ 6%]\ntests/a.py::test_d SKIPPED (no)\n"
    assert outcomes(told + "tests/a.py::test_e ") == {
        **{"tests/a.py::test_b[x y-1]": "passed", "tests/a.py::test_c": "failed", "tests/a.py::test_d": "skipped"}
    }


TESTS = """
import os
import pytest
lost, pytestmark = [], pytest.mark.gpu
def test_fine(): pass
def test_loses(): lost.append(1); assert 0
def test_behind(): assert not lost
def test_dies(): os._exit(3)
def test_last(): pass
"""


def test_one_test_takes_no_other_with_it(tmp_path: Path) -> None:
    """The one that ends its process, and the one after which all fail, are left behind."""
    path = tmp_path / "test_device.py"
    path.write_text(TESTS)
    wanted = dict(fine="passed", loses="failed", behind="passed", dies="no outcome", last="passed")
    names = [f"test_device.py::test_{name}" for name in wanted]
    record = Record(tmp_path / "record", "tests")
    assert not gpu_device_tests.run(names, record, time.monotonic() + 600, folder=tmp_path, most=1)
    found = {cell["test"]: cell["outcome"] for cell in read(record.path, CELL)}
    assert found == dict(zip(names, wanted.values(), strict=True))


WARM = """
import sys
import torch
from loadtest.bench.gpu_pretend import META, H100, pretended
from loadtest.bench.gpu_prewarm import compiled, pretend
from kernels.gpu.norms import layer_norm, layer_norm_kernel
from triton.runtime.jit import JITFunction

x = torch.empty(333, 80, dtype=torch.bfloat16, device=META)
with pretended() as launches:
    layer_norm(x, x[0], x[0], 1e-6)
if sys.argv[-1] == "ahead":
    pretend(90)
    for one in launches.found.values():
        layer_norm_kernel.device_caches.clear()  # what another process does not know
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

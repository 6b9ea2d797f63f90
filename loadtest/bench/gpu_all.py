"""Everything that a machine with a CUDA device is asked, in one command: right first, then tuned, then measured.

`python -m loadtest.bench.gpu_all --out DIR [--minutes 9]` runs each step as a process of its own, so that one that dies
takes nothing with it; the benchmarks write their JSON after every cell, the most important first. `make bench-gpu`
calls it. `--only STEP` picks. It is no command of mfalcon, because the machine may have no typer.

Needs torch >= 2.11, triton >= 3.6 and numpy. Stacks need pydantic too, laws and tests also opentelemetry-api, redis and
pytest-asyncio; a step whose packages are missing is skipped and says so. For a machine that has torch, triton, numpy,
safetensors, hypothesis and xxhash and reaches no index, carry as wheels, in the versions of .venv: pydantic,
pydantic-core, annotated-types, typing-extensions, typing-inspection, opentelemetry-api, redis, pytest, pytest-asyncio.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from loadtest.bench.gpu_profile import ncu_command
from loadtest.report.machine import commit as here

ROOT = Path(__file__).parents[2]
_MODEL = ("pydantic", "pydantic_core")
_ENGINE = (*_MODEL, "safetensors", "xxhash", "opentelemetry", "redis")
_TESTS = (*_ENGINE, "pytest", "pytest_asyncio", "hypothesis")
_SELF_CHECK = """
import torch
from kernels.gpu.check import check
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    check(torch.device("cuda"), dtype)
    print("self-check passed in", dtype, flush=True)
"""
_STEP = """
import sys
from pathlib import Path
from loadtest.bench.{} import step
sys.exit(not step(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] or None))
"""
"""What they import may be missing here."""
_LAST_LINES = 12
_MARGIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """A process. needs: packages. share: of the time that is left when it begins. gate: whether its failure ends the
    run, since nothing is measured on what is wrong; running out of time is no failure.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    share: float = 1.0
    gate: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: "passed", "failed", "out of time" or "skipped: why"."""

    step: str
    result: str
    seconds: float


def steps(out: Path, device_name: str, left_s: float, commit: str | None) -> list[Step]:
    """In their order. left_s: for everything."""
    python, name = (sys.executable, "-m"), device_name.replace(" ", "_")

    def ours(step: str, module: str, budget: float) -> tuple[str, ...]:
        file = out / f"{step}-{name}.json"
        return (sys.executable, "-c", _STEP.format(module), str(file), f"{budget * left_s:.0f}", commit or "")

    return [
        Step("self-check", (sys.executable, "-c", _SELF_CHECK), gate=True),
        Step("laws", ours("laws", "gpu_laws", 1.0), _ENGINE, gate=True),
        Step("tests", (*python, "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), _TESTS, 0.3, gate=True),
        Step("tune", ours("tune", "gpu_tune", 0.2), share=0.35),
        Step("stacks", ours("stacks", "gpu_stacks", 0.3), _MODEL, 0.7),
        Step("kernels", ours("kernels", "kernels", 0.25), share=0.9),
        Step("ncu", tuple(ncu_command(out / f"ncu-{name}.txt")), ("ncu",)),
    ]


def run(plan: Sequence[Step], log: Path, seconds: float) -> list[Outcome]:
    """Every step in turn, its output into the log and its last lines here; ends at a gate that failed."""
    end, outcomes = time.monotonic() + seconds, []
    for step in plan:
        begun = time.monotonic()
        missing = [name for name in step.needs if not _found(name)]
        left = (end - begun) * step.share
        if missing:
            outcomes.append(Outcome(step.name, f"skipped: {', '.join(missing)} not found", 0.0))
        elif end - begun < _MARGIN_S:
            outcomes.append(Outcome(step.name, "skipped: the time is up", 0.0))
        else:
            result = _process(step, log, left)
            outcomes.append(Outcome(step.name, result, time.monotonic() - begun))
            if result == "failed" and step.gate:
                _say(outcomes[-1])
                break
        _say(outcomes[-1])
    return outcomes


def main() -> None:
    """Exit code 1 if anything failed that began."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--commit", default=here(), help="of this tree, where git cannot tell")
    parser.add_argument("--skip", action="append", default=[], metavar="STEP", help="leave a step out; repeatable")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="these steps; repeatable")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_all: torch finds no CUDA device here")
    given.out.mkdir(parents=True, exist_ok=True)
    out, name = given.out.resolve(), torch.cuda.get_device_name()
    seconds = 60 * given.minutes - _MARGIN_S
    plan = [
        step
        for step in steps(out, name, seconds, given.commit)
        if step.name not in given.skip and (not given.only or step.name in given.only)
    ]
    outcomes = run(plan, out / "gpu.log", seconds)
    tuned = ROOT / "kernels" / "gpu" / "tuned" / f"{name.replace(' ', '_')}.json"
    if tuned.is_file() and tuned.parent != out:
        shutil.copy(tuned, out / f"tuned-{tuned.name}")
    print("\n".join(["", *_bars(out)]), flush=True)
    sys.exit(1 if any(outcome.result in ("failed", "out of time") for outcome in outcomes) else 0)


def _process(step: Step, log: Path, seconds: float) -> str:
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n=== {step.name}: {' '.join(step.command)}\n")
        file.flush()
        before = file.tell()
        process = subprocess.Popen(step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            result = "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            result = "out of time"
    written = log.read_bytes()[before:].decode(errors="replace").splitlines()
    print("\n".join(f"  {line}" for line in written[-_LAST_LINES:]), flush=True)
    return result


def _found(name: str) -> bool:
    return shutil.which(name) is not None if name == "ncu" else find_spec(name) is not None


def _say(outcome: Outcome) -> None:
    print(f"--- {outcome.step}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)


def _bars(out: Path) -> list[str]:
    """What is asked for, off the files: a step that was cut short has written them too."""
    lines = []
    for path in sorted([*out.glob("kernels-*.json"), *out.glob("stacks-*.json")]):
        for bar in json.loads(path.read_text(encoding="utf-8"))["bars"]:
            value = "not measured" if bar["value"] is None else f"{bar['value']:.3g}"
            met = "" if bar["holds"] is None else " met" if bar["holds"] else " NOT MET"
            lines.append(f"{bar['name']}: {value}, bar {'<=' if bar['at_most'] else '>='} {bar['limit']:g}{met}")
    return lines


if __name__ == "__main__":
    main()

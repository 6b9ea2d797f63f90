"""Runs the steps of a script on a device: each a process, killed at its time, its output in a log, its end in a record.

Nothing that a step does ends more than itself. All steps together keep to the seconds they are given: what comes last
is what is dropped.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.gpu_record import REHEARSED, STEP, Record, read
from loadtest.bench.gpu_wheels import PRESENT, missing, unpack

ROOT = Path(__file__).parents[2]
_LAST_LINES = 6
_LEAST_S = 5.0
"""Left of the time: with less no step is begun."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A process. command: with {seconds} for how long it may work. most_s: it is killed then. beside: it runs beside
    the next step.
    """

    name: str
    command: tuple[str, ...]
    most_s: float
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: "passed", "failed", "out of time" or "dropped: the time is up"."""

    name: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Running:
    step: Planned
    process: subprocess.Popen[bytes]
    output: Path
    begun: float
    end: float


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step is asked: end is of the monotonic clock, after which it begins nothing more."""

    record: Path
    end: float
    rehearse: bool
    name: str = ""

    def time_is_up(self) -> bool:
        """Whether to begin nothing more."""
        return time.monotonic() > self.end


def asked(description: str | None, names: Sequence[str] = ()) -> Asked:
    """The arguments of a step's process. names: of the steps that the module has, if there are several."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if names:
        parser.add_argument("name", choices=names)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing later")
    parser.add_argument("--rehearse", action="store_true", help="without a device")
    given = parser.parse_args()
    return Asked(given.record, time.monotonic() + given.seconds, given.rehearse, given.name if names else "")


def script(
    description: str | None,
    plan: Callable[[Path, Path, bool], Sequence[Planned]],
    needs: Sequence[str],
    seconds: float,
) -> None:
    """The main program of a script. plan: of the folder, the record and whether it is rehearsed.

    Exit code 1 if a step failed, ran out of time or was dropped, or a rehearsal found anything wrong.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to import from")
    parser.add_argument("--seconds", type=float, default=seconds, help="for everything")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="these steps; repeatable")
    parser.add_argument("--rehearse", action="store_true", help="without a device")
    given = parser.parse_args()
    out, record, environment = prepared(given.out, given.wheels, needs)
    steps = [step for step in plan(out, record, given.rehearse) if not given.only or step.name in given.only]
    outcomes = run(steps, out, record, given.seconds, environment)
    wrong = [text for line in read(record, REHEARSED) for text in line["wrong"]]
    print("\n".join(wrong), flush=True)
    sys.exit(1 if wrong or any(outcome.result != "passed" for outcome in outcomes) else 0)


def prepared(out: Path, wheels: Path | None, needs: Sequence[str]) -> tuple[Path, Path, dict[str, str]]:
    """The folder of the results, the file of its record, and what the steps' environment has beyond this one's.

    Exits, before any clock runs, where a package is missing.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record, site = out / "gpu.jsonl", out / "site"
    record.unlink(missing_ok=True)
    path = list(sys.path)
    if wheels is not None:
        print(f"{unpack(wheels, site)} wheels are unpacked into {site}", flush=True)
        path.insert(0, str(site))
    if absent := missing((*PRESENT, *needs), path):
        sys.exit(f"missing here: {', '.join(absent)}; fetch wheels with `make gpu-wheels` and name them with --wheels")
    before = os.environ.get("PYTHONPATH")
    more = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([str(site)] if wheels else []), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_DISABLE_LINE_INFO": "1",  # a binary's name in the cache depends on it
    }
    return out, record, more


def run(plan: Sequence[Planned], out: Path, record: Path, seconds: float, more: Mapping[str, str]) -> list[Outcome]:
    """Every step in turn. out: folder of the logs. more: of the environment."""
    end, outcomes = time.monotonic() + seconds, []
    running: list[_Running] = []
    for step in plan:
        now = time.monotonic()
        if end - now < _LEAST_S:
            outcomes.append(_told(Outcome(step.name, "dropped: the time is up", 0.0), record))
            continue
        running.append(_begun(step, out, min(step.most_s, end - now), more))
        if not step.beside:
            outcomes += [_told(_ended(each), record) for each in running]
            running = []
    return outcomes + [_told(_ended(each), record) for each in running]


def _begun(step: Planned, out: Path, seconds: float, more: Mapping[str, str]) -> _Running:
    now, output = time.monotonic(), out / f"{step.name}.log"
    # What it may work is a little less than it may live: it ends by itself.
    command = [word.replace("{seconds}", f"{max(1.0, seconds - _LEAST_S):.0f}") for word in step.command]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, process_group=0, env={**os.environ, **more}
        )
    return _Running(step, process, output, now, now + seconds)


def _ended(running: _Running) -> Outcome:
    process = running.process
    try:
        result = "passed" if process.wait(max(0.0, running.end - time.monotonic())) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        result = "out of time"
    written = running.output.read_bytes().decode(errors="replace").splitlines()
    print("\n".join(f"  {line[:200]}" for line in written[-_LAST_LINES:]), flush=True)
    return Outcome(running.step.name, result, time.monotonic() - running.begun)


def _told(outcome: Outcome, record: Path) -> Outcome:
    print(f"--- {outcome.name}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)
    Record(record, outcome.name).add(STEP, {"result": outcome.result, "seconds": outcome.seconds})
    return outcome

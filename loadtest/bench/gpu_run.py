"""Runs the steps of a script on a device: each a process, killed at its time, its output in a log, its end in a record.

Nothing that a step does ends more than itself. One that was killed, that stands still or that lost its device is begun
again behind the item that did it (`gpu_record.Turns`); the first time that this happens that item is tried once more,
and from then on no step uses the kernels for Hopper, which are the likeliest to do it. All steps together keep to the
seconds they are given: what comes last is what is dropped.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from loadtest.bench.gpu_record import AGAIN, BEGUN, CELL, LOST, REHEARSED, STEP, Record, Turns, read
from loadtest.bench.gpu_wheels import missing, unpack

ROOT = Path(__file__).parents[2]
IMPORTED = (str(ROOT), str(ROOT / "client"))
"""Folders of this checkout that a process imports from, where nothing is installed."""
START_S = 6.0
"""Until a process on a device computes: torch, its libraries, the device. Assumed, for predictions."""
_LAST_LINES = 6
_LEAST_S = 5.0
"""Left of the time: with less no step is begun."""
_KEPT_S = 20.0
"""For the last step."""
_LOOK_S = 0.25
_DIES_S = 10.0
"""Until a process is gone that was killed: one that waits for a driver may never be."""
_PLAIN = "--plain"
_REHEARSED_SLOWER = 5.0
"""How much longer a step may take that is only rehearsed, on whatever machine."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A process. command: with {seconds} for how long it may work, and {plain} where it may be told to use no kernels
    for Hopper. most_s: it is killed then. beside: it runs beside
    the next step. stalled_s: it is killed when it adds nothing to the record for so long, after its first line. last:
    time is kept for it.
    """

    name: str
    command: tuple[str, ...]
    most_s: float
    beside: bool = False
    stalled_s: float | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended: "passed", "failed", "killed by signal N", "stood still", "lost the device", "out of time", or
    "dropped: " and why.
    """

    name: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class _Running:
    step: Planned
    process: subprocess.Popen[bytes]
    copying: threading.Thread
    begun: float
    end: float
    num_items: int
    last: deque[str]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step is asked. end: of the monotonic clock, after which it begins nothing more. plain: whether it uses no
    kernels for Hopper.
    """

    record: Path
    end: float
    rehearse: bool
    plain: bool
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
    parser.add_argument(_PLAIN, action="store_true", help="use no kernels for Hopper")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    return Asked(given.record, end, given.rehearse, given.plain, given.name if names else "")


def backend_of(given: Asked) -> str:
    """What a model's layers are computed by (`mfalcon.backends.choice`)."""
    return "triton_plain" if given.plain and not given.rehearse else "auto"


def script(
    description: str | None,
    plan: Callable[[Path, Path, bool], Sequence[Planned]],
    needs: Sequence[str],
    seconds: float,
    also: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """The main program of a script. plan: of the folder, the record and whether it is rehearsed. also: what single
    steps import beside what all need; one whose packages are missing is dropped.

    Exit code 1 if a step did not pass, a cell has an error, or a rehearsal found anything wrong.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to import from")
    parser.add_argument("--seconds", type=float, default=seconds, help="for everything")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="these steps; repeatable")
    parser.add_argument("--rehearse", action="store_true", help="without a device")
    given = parser.parse_args()
    out, record, environment = prepared(given.out, given.wheels, needs)
    steps, outcomes = [], []
    for step in plan(out, record, given.rehearse):
        if given.only and step.name not in given.only:
            continue
        if absent := missing(tuple((also or {}).get(step.name, ())), environment):
            outcomes.append(_told(Outcome(step.name, f"dropped: {'; '.join(absent)}"[:300], 0.0), record))
        elif given.rehearse:
            stalled_s = None if step.stalled_s is None else _REHEARSED_SLOWER * step.stalled_s
            steps.append(replace(step, most_s=_REHEARSED_SLOWER * step.most_s, stalled_s=stalled_s))
        else:
            steps.append(step)
    outcomes += run(steps, out, record, given.seconds, environment)
    wrong = [text for line in read(record, REHEARSED) for text in line["wrong"]]
    wrong += [f"{cell['step']}: {cell['error']}" for cell in read(record, CELL) if cell.get("error")]
    print("\n".join(wrong), flush=True)
    sys.exit(1 if wrong or any(outcome.result != "passed" for outcome in outcomes) else 0)


def prepared(out: Path, wheels: Path | None, needs: Sequence[str]) -> tuple[Path, Path, dict[str, str]]:
    """The folder of the results, the file of its record, and what the steps' environment has beyond this one's.

    Exits, before any clock runs, where a package is missing.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record, site = out / "gpu.jsonl", out / "site"
    for old in (record, *out.glob("*.log")):
        old.unlink(missing_ok=True)
    if wheels is not None:
        print(f"{unpack(wheels, site)} wheels are unpacked into {site}", flush=True)
    before = os.environ.get("PYTHONPATH")
    more = {
        "PYTHONPATH": os.pathsep.join([*IMPORTED, *([str(site)] if wheels else []), *([before] if before else [])]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_DISABLE_LINE_INFO": "1",  # a binary's name in the cache depends on it
    }
    if absent := missing(needs, more):
        sys.exit(f"missing here: {'; '.join(absent)}: fetch wheels with `make gpu-wheels` and name them with --wheels")
    return out, record, more


def run(plan: Sequence[Planned], out: Path, record: Path, seconds: float, more: Mapping[str, str]) -> list[Outcome]:
    """Every step in turn; an outcome for each time that one was begun. out: folder of the logs. more: of the
    environment.
    """
    end, runner = time.monotonic() + seconds, _Runner(out, record, more)
    kept = min(_KEPT_S, max(2 * _LEAST_S, seconds / 10)) * sum(step.last for step in plan)
    running: list[_Running] = []
    for step in plan:
        now = time.monotonic()
        its_end = max(end, now + _LEAST_S) if step.last else end - kept
        if not step.last and its_end - now < _LEAST_S:
            runner.outcomes.append(_told(Outcome(step.name, "dropped: the time is up", 0.0), record))
            continue
        running.append(runner.begun(step, min(now + step.most_s, its_end)))
        if not step.beside:
            for each in running:
                runner.wait(each, its_end)
            running = []
    for each in running:
        runner.wait(each, end)
    return runner.outcomes


@dataclass(slots=True)
class _Runner:
    """Begins steps. plain: from when on they use no kernels for Hopper."""

    out: Path
    record: Path
    more: Mapping[str, str]
    plain: bool = False
    outcomes: list[Outcome] = field(default_factory=list)

    def wait(self, running: _Running, end: float) -> None:
        """For a step, begun again as long as each attempt comes further than the last. end: of all steps."""
        step, record = running.step, Record(self.record, running.step.name)
        while True:
            outcome = _told(_ended(running, self.record), self.record)
            self.outcomes.append(outcome)
            items = _items(self.record, step)
            if outcome.result in ("passed", "failed", "out of time") or len(items) == running.num_items:
                return
            first, self.plain = not self.plain, True
            record.add(AGAIN if first else LOST, {"item": items[-1], "why": outcome.result})
            # Its time is what it had left, and that for which it stood still.
            more_s = step.stalled_s or 0.0 if outcome.result == "stood still" else 0.0
            again = min(running.end + more_s, end)
            if again - time.monotonic() < _LEAST_S:
                return
            running = self.begun(step, again)

    def begun(self, step: Planned, end: float) -> _Running:
        """A process of it."""
        now = time.monotonic()
        # What it may work is a little less than it may live: it ends by itself.
        words = {"{seconds}": f"{max(1.0, end - now - _LEAST_S):.0f}", "{plain}": _PLAIN}
        command = [words.get(word, word) for word in step.command if self.plain or word != "{plain}"]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, **self.more},
        )
        assert process.stdout is not None
        last: deque[str] = deque(maxlen=_LAST_LINES)
        log = self.out / f"{step.name}.log"
        copying = threading.Thread(target=_copy, args=(process.stdout, log, last), daemon=True)
        copying.start()
        return _Running(step, process, copying, now, end, len(_items(self.record, step)), last)


def _items(record: Path, step: Planned) -> list[str]:
    """What the step has begun so far, in all attempts."""
    return [line["item"] for line in read(record, BEGUN) if line["step"] == step.name]


def _copy(source: IO[bytes], log: Path, last: deque[str]) -> None:
    """What a step says, into its log as long as the disk has room; what finds none is printed."""
    with source:
        for line in source:
            text = line.decode(errors="replace").rstrip()
            last.append(text)
            try:
                with log.open("ab", buffering=0) as file:
                    file.write(line)
            except OSError:
                print(text, flush=True)


def _ended(running: _Running, record: Path) -> Outcome:
    process, step = running.process, running.step
    size, grown = _size(record), math.inf  # how long it takes to begin is not known
    while True:
        now = time.monotonic()
        try:
            result = _by_code(process.wait(max(0.0, min(_LOOK_S, running.end - now))))
            break
        except subprocess.TimeoutExpired:
            if _size(record) != size:
                size, grown = _size(record), now
            if now >= running.end:
                result = "out of time"
                break
            if step.stalled_s is not None and now > grown + step.stalled_s:
                result = "stood still"
                break
    with suppress(ProcessLookupError):  # also what a step has left behind, which would keep the device busy
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_DIES_S)
    running.copying.join(1.0)
    print("\n".join(f"  {line[:200]}" for line in running.last), flush=True)
    return Outcome(step.name, result, time.monotonic() - running.begun)


def _by_code(code: int) -> str:
    if code < 0:
        return f"killed by signal {-code}"
    return {0: "passed", Turns.DEVICE_LOST: "lost the device"}.get(code, "failed")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _told(outcome: Outcome, record: Path) -> Outcome:
    print(f"--- {outcome.name}: {outcome.result} ({outcome.seconds:.0f} s)", flush=True)
    Record(record, outcome.name).add(STEP, {"result": outcome.result, "seconds": outcome.seconds})
    return outcome

"""The tests that need a device, several processes side by side, as their kernels are compiled one after the other.

`python -m loadtest.bench.gpu_device_tests --record FILE --seconds S`. Nothing is timed, so they may share the device.
What fails is written down and ends nothing; with --rehearse they are collected and not run.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from loadtest.bench.gpu_record import CELL, Record
from loadtest.bench.gpu_run import ROOT, START_S, asked
from mfalcon.cores import owned_cores

FILES = (
    "tests/gpu/test_device.py",
    "tests/kvcache/test_codec.py",
    "tests/kvcache/test_copy.py",
    "tests/kvcache/test_state.py",
)
"""Those with such tests; collecting all of tests/ would import what a machine with a device need not have."""
_PYTEST = (sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider")
_MOST_PROCESSES = 8
_TEST_S = 4.0
"""Assumed for a test, most of it for kernels that are compiled."""
_OUTCOME = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)


def collected() -> list[str]:
    """Names of the tests."""
    command = [*_PYTEST, "-qq", "--collect-only", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the tests cannot be collected:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [line for line in done.stdout.splitlines() if "::" in line]


def outcomes(written: str) -> dict[str, str]:
    """By test, as pytest -v tells them while it runs; of one that fails and then errs, the latter."""
    return {name: outcome.lower() for name, outcome in _OUTCOME.findall(written)}


def run(names: Sequence[str], record: Record, end: float, folder: Path = ROOT, most: int = _MOST_PROCESSES) -> bool:
    """Write down every test's outcome; whether all have passed. end: of the monotonic clock. folder: in which pytest
    runs. most: processes.
    """
    num = max(1, min(most, owned_cores(), len(names)))
    with ThreadPoolExecutor(num) as threads:
        logs = [record.path.parent / f"tests-{first}.log" for first in range(num)]
        parts = [names[first::num] for first in range(num)]
        found = {name: it for part in threads.map(partial(_run, folder, end), parts, logs) for name, it in part.items()}
    for name in names:
        record.add(CELL, {"test": name, "outcome": found.get(name, "no outcome")})
    return all(found.get(name) == "passed" for name in names)


def _run(folder: Path, end: float, names: Sequence[str], log: Path) -> dict[str, str]:
    """Outcomes of some tests in one process after the other: the first that has none ended its process, and the first
    that failed may have lost the device for all behind it.
    """
    found: dict[str, str] = {}
    while names and time.monotonic() < end:
        with log.open("ab") as file:
            begun = file.tell()
            process = subprocess.Popen([*_PYTEST, *names], cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        told = outcomes(log.read_bytes()[begun:].decode(errors="replace"))
        found |= told
        failed = [name for name in names if told.get(name) in ("failed", "error")]
        names = [*[name for name in names if name not in told][1:], *failed[1:]]
    return found


def main() -> None:
    """Exit code 1 unless all have passed."""
    given = asked(__doc__)
    record, names = Record(given.record, "tests"), collected()
    print(f"{len(names)} tests", flush=True)
    if given.rehearse:
        for name in names:
            record.add(CELL, {"test": name, "outcome": "collected"})
        record.predict(START_S + _TEST_S * len(names) / _MOST_PROCESSES)
    elif not run(names, record, given.end):
        sys.exit(1)


if __name__ == "__main__":
    main()

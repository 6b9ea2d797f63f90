"""The tests that need a device, several processes side by side, as their kernels are compiled one after the other.

`python -m loadtest.bench.gpu_device_tests --record FILE --seconds S`. Nothing is timed, so they may share the device.
What fails is written down and ends nothing; with --rehearse they are collected and not run.
"""

import re
import subprocess
import sys
import time
from collections.abc import Sequence

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
_PYTEST = (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider")
_MOST_PROCESSES = 8
_TEST_S = 4.0
"""Assumed for a test, most of it for kernels that are compiled."""
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) (\S+::\S.*?)(?: - .*)?$", re.MULTILINE)


def collected() -> list[str]:
    """Names of the tests."""
    command = [*_PYTEST, "--collect-only", *FILES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the tests cannot be collected:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [line for line in done.stdout.splitlines() if "::" in line]


def outcomes(written: str) -> dict[str, str]:
    """By test, as pytest -rA tells them."""
    return {name: outcome.lower() for outcome, name in _OUTCOME.findall(written)}


def run(names: Sequence[str], record: Record, end: float) -> bool:
    """Write down every test's outcome; whether all have passed. end: of the monotonic clock."""
    num = max(1, min(_MOST_PROCESSES, owned_cores(), len(names)))
    parts = [(names[first::num], record.path.parent / f"tests-{first}.log") for first in range(num)]
    processes = []
    for part, log in parts:
        with log.open("wb") as file:
            command = [*_PYTEST, "-rA", "--tb=short", *part]
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT))
    for process in processes:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    passed = True
    for part, log in parts:
        found = outcomes(log.read_text(encoding="utf-8", errors="replace"))
        for name in part:
            outcome = found.get(name, "no outcome")
            passed &= outcome == "passed"
            record.add(CELL, {"test": name, "outcome": outcome})
    return passed


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

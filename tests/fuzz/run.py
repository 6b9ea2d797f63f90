"""Fuzz surfaces with atheris, each in a process of its own: `python -m tests.fuzz.run [SURFACE...] --seconds N`.

What libFuzzer finds worth keeping stays in build/fuzz/SURFACE/grown, where the next run goes on; an input that must not
be is beside it, with the log. `--keep` copies the smallest of what reaches more than the seeds to the corpus, which is
committed.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

from tests.fuzz.surfaces import CORPUS, NAMES, Surface, surface

ROOT = Path(__file__).parents[2]
FOUND = ROOT / "build" / "fuzz"
MOST_KEPT_BYTES = 16_000
"""Of a surface, in the corpus."""
OURS = tuple(str(ROOT / package) for package in ("mfalcon", "server"))
Trace: TypeAlias = Callable[[FrameType, str, Any], Any]
OPTIONS = ("-max_len=4096", "-timeout=30", "-rss_limit_mb=4096", "-print_final_stats=1")


def main() -> None:
    """Run each surface for a while; exit code 1 if an input was found that must not be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("surfaces", nargs="*", help=f"all if none is given: {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="of each surface")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what reaches more")
    options = parser.parse_args()
    if unknown := set(options.surfaces) - set(NAMES):
        parser.error(f"there is no surface {', '.join(sorted(unknown))}, but: {', '.join(NAMES)}")
    failed = []
    for name in options.surfaces or NAMES:
        if not run(name, options.seconds):
            failed.append(name)
        elif options.keep:
            keep(name)
    print(f"inputs that must not be were found of: {', '.join(failed)}" if failed else "nothing was found")
    sys.exit(bool(failed))


def run(name: str, seconds: int) -> bool:
    """Fuzz a surface in a process of its own; False if that found something."""
    seeds = _seeds(name)
    began = time.monotonic()
    log = FOUND / name / "log"
    ended = _libfuzzer(name, log, f"-max_total_time={seconds}", str(_grown(name)), str(seeds))
    told = log.read_text(errors="replace")
    runs = told.rpartition("stat::number_of_executed_units:")[2].split()[:1]
    print(f"{name}: {''.join(runs) or '?'} inputs in {time.monotonic() - began:.0f} s, exit code {ended}", flush=True)
    if ended:
        print(told[-3_000:])
    return ended == 0


def keep(name: str) -> None:
    """Have the corpus of a surface hold what reaches more than it, the smallest first, while there is room."""
    reached = Reached(surface(name))
    for data in surface(name).corpus():
        reached.grows_by(data)
    held = sum(path.stat().st_size for path in (CORPUS / name).glob("*"))
    for path in sorted(_grown(name).iterdir(), key=lambda path: (path.stat().st_size, path.name)):
        size = path.stat().st_size
        if held + size <= MOST_KEPT_BYTES and reached.grows_by(path.read_bytes()):
            (CORPUS / name).mkdir(parents=True, exist_ok=True)
            (CORPUS / name / path.name[:12]).write_bytes(path.read_bytes())
            held += size


class Reached:
    """The steps from line to line of our own code that inputs of a surface have taken."""

    def __init__(self, of: Surface) -> None:
        self._target = of.target
        self._steps: set[tuple[CodeType, int, int]] = set()

    def grows_by(self, data: bytes) -> bool:
        """Whether an input takes steps that none before it took."""
        before = len(self._steps)
        sys.settrace(self._enter)
        try:
            self._target(data)
        finally:
            sys.settrace(None)
        return len(self._steps) > before

    def _enter(self, frame: FrameType, event: str, argument: object) -> Trace | None:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        last = 0

        def step(frame: FrameType, event: str, argument: object) -> Trace:
            nonlocal last
            if event == "line":
                self._steps.add((frame.f_code, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step


def _seeds(name: str) -> Path:
    """A directory with the corpus of a surface."""
    seeds = FOUND / name / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(surface(name).corpus()):
        (seeds / f"{number:04}").write_bytes(data)
    return seeds


def _grown(name: str) -> Path:
    grown = FOUND / name / "grown"
    grown.mkdir(parents=True, exist_ok=True)
    return grown


def _libfuzzer(name: str, log: Path, *arguments: str) -> int:
    command = [sys.executable, "-m", "tests.fuzz.one", name, *OPTIONS, f"-artifact_prefix={FOUND / name}/", *arguments]
    with log.open("w") as file:
        return subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False).returncode


if __name__ == "__main__":
    main()

"""Where a number was measured: a figure without its hardware and commit is not published."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class Machine:
    """What computed. `load` is the 1-minute load average when the run began: above 0 on a quiet machine means
    neighbours.
    """

    cpu: str
    cores: int
    instruction_set: str
    torch: str
    threads: int
    load: float


def this_machine() -> Machine:
    """The machine, and the number of threads that torch uses now."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
    )


def commit() -> str | None:
    """The commit of this checkout, with "-dirty" when files differ from it; None outside a checkout or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

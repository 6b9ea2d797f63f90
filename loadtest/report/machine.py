"""Where a number was measured: a figure without its hardware and commit is not published."""

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

INTERPRETER = "interpreter, no timing claims"
"""The device of kernels that ran in Triton's interpreter."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What computed. `load` is the 1-minute load average when the run began: above 0 on a quiet machine means
    neighbours. device, driver, cuda (that torch was built for) and triton: None where no device was measured.
    """

    cpu: str
    cores: int
    instruction_set: str
    torch: str
    threads: int
    load: float
    device: str | None = None
    driver: str | None = None
    cuda: str | None = None
    triton: str | None = None


def this_machine(device: torch.device | None = None) -> Machine:
    """The machine, and the number of threads that torch uses now. device: that was measured, if it was not the CPU as
    such; a CPU is then Triton's interpreter.
    """
    on_cuda = device is not None and device.type == "cuda"
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 2),
        device=None if device is None else torch.cuda.get_device_name(device) if on_cuda else INTERPRETER,
        driver=_driver() if on_cuda else None,
        cuda=None if device is None else torch.version.cuda,
        triton=None if device is None else _version("triton"),
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


def _driver() -> str | None:
    """NVIDIA's, as its module says; None where that cannot be read."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
    except OSError:
        return _asked_driver()
    return next((word for word in words if word[:1].isdigit() and word.count(".") > 0), None)


def _asked_driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())

"""A few launches of the kernels for Nsight Compute to look into, and the command that has it do so.

`python -m loadtest.bench.gpu_profile` launches, and with `--ncu REPORT` has Nsight Compute look at that. The card's
clocks are left alone (--clock-control none), so durations are as in the benchmarks.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from kernels.gpu.linear import linear
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, inputs
from loadtest.bench.gpu_timing import generator_on
from loadtest.bench.kernels import launch

CASES = (Case(TARGET, 4096, 2048, 128, 1), Case(PREFIX, 4096, 4096, 128, 1), Case(TARGET, 4096, 2048, 256, 1))
SMALL = (
    Case(TARGET, 300, 77, 128, 2),
    Case(PREFIX, 300, 77, 128, 2),
    Case(TARGET, 700, 300, 128, 1),
    Case(TARGET, 300, 77, 64, 1, codes="int8"),
    Case(PREFIX, 300, 77, 64, 1, codes="fp8"),
)
_ROWS, _DIM, _WIDTH = 65_536, 512, 2_048
"""Of the projection in front of a DLRM-v3 layer, 32 users."""
_SECTIONS = (
    *("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "WarpStateStats"),
    "ComputeWorkloadAnalysis",
)


def ncu_command(report: Path) -> list[str]:
    """Profiles what `main` launches between the profiler's start and stop; text into `report`."""
    sections = [word for section in _SECTIONS for word in ("--section", section)]
    options = ["--clock-control", "none", "--profile-from-start", "off", "-k", "regex:attention_kernel|linear_kernel"]
    return ["ncu", *options, *sections, "--log-file", str(report), sys.executable, "-m", "loadtest.bench.gpu_profile"]


def memcheck_command() -> list[str]:
    """Has compute-sanitizer look at `small`, which it makes 10 to 100 times slower."""
    options = ["--tool", "memcheck", "--error-exitcode", "9"]
    return ["compute-sanitizer", *options, sys.executable, "-m", "loadtest.bench.gpu_profile", "--small"]


def small(device: torch.device) -> None:
    """Everything once where it is ragged: tiles and pages that are not full, codes, splits."""
    launches(device, cases=SMALL, rows=333)


def launches(
    device: torch.device,
    looking: Callable[[], AbstractContextManager[None]] = nullcontext,
    cases: Sequence[Case] = CASES,
    rows: int = _ROWS,
) -> None:
    """Warm up, then launch every case once while the profiler is looking."""
    with torch.inference_mode():
        for case in cases:
            given = inputs(case, device)
            for _ in range(3):
                launch(given, 0)
            with looking():
                launch(given, len(given.sets) - 1)
        generator = generator_on(device, 0)
        x, weight = (
            torch.randn(size, _DIM, generator=generator, device=device).to(torch.bfloat16) for size in (rows, _WIDTH)
        )
        bias = weight[:, 0].contiguous()
        for _ in range(3):
            linear(x, weight, bias, num_silu=_DIM)
        with looking():
            linear(x, weight, bias, num_silu=_DIM)


@contextmanager
def _profiled() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main() -> None:
    """Launch, or with --ncu REPORT or --memcheck have a tool of NVIDIA's run this and look at it."""
    if not torch.cuda.is_available():
        sys.exit("gpu_profile: torch finds no CUDA device here")
    match sys.argv[1:]:
        case ["--ncu", report]:
            _by(ncu_command(Path(report)))
        case ["--memcheck"]:
            _by(memcheck_command())
        case ["--small"]:
            small(torch.device("cuda"))
            torch.cuda.synchronize()
        case _:
            launches(torch.device("cuda"), _profiled)


def _by(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        sys.exit(f"gpu_profile: {command[0]} is not installed")
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()

"""A few launches of the kernels for Nsight Compute to look into, and the command that has it do so.

`python -m loadtest.bench.gpu_profile` launches, and with `--ncu REPORT` has Nsight Compute look at that. The card's
clocks are left alone (--clock-control none), so durations are as in the benchmarks.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from kernels.gpu.linear import linear
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, inputs
from loadtest.bench.gpu_timing import generator_on
from loadtest.bench.kernels import launch

CASES = (Case(TARGET, 4096, 2048, 128, 1), Case(PREFIX, 4096, 4096, 128, 1), Case(TARGET, 4096, 2048, 256, 1))
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


def launches(device: torch.device, looking: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
    """Warm up, then launch every case once while the profiler is looking."""
    with torch.inference_mode():
        for case in CASES:
            given = inputs(case, device)
            for _ in range(3):
                launch(given, 0)
            with looking():
                launch(given, len(given.sets) - 1)
        generator = generator_on(device, 0)
        x, weight = (
            torch.randn(size, _DIM, generator=generator, device=device).to(torch.bfloat16) for size in (_ROWS, _WIDTH)
        )
        for _ in range(3):
            linear(x, weight, weight[:, 0].contiguous(), num_silu=_DIM)
        with looking():
            linear(x, weight, weight[:, 0].contiguous(), num_silu=_DIM)


@contextmanager
def _profiled() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    yield
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def main() -> None:
    """Launch, or with --ncu have Nsight Compute run this and write its report there."""
    if not torch.cuda.is_available():
        sys.exit("gpu_profile: torch finds no CUDA device here")
    if sys.argv[1:2] == ["--ncu"]:
        if shutil.which("ncu") is None:
            sys.exit("gpu_profile: ncu is not installed")
        sys.exit(subprocess.run(ncu_command(Path(sys.argv[2])), check=False).returncode)
    launches(torch.device("cuda"), _profiled)


if __name__ == "__main__":
    main()

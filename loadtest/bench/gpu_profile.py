"""A few launches of the attention kernels for Nsight Compute to look into, and the command that has it do so.

`python -m loadtest.bench.gpu_profile` launches; `ncu_command` is what `loadtest.bench.gpu_all` runs where ncu is
installed. The card's clocks are left alone (--clock-control none), so durations are as in the benchmarks.
"""

import sys
from pathlib import Path

import torch

from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, inputs
from loadtest.bench.kernels import launch

CASES = (
    Case(TARGET, 4096, 2048, 128, 1),
    Case(TARGET, 4096, 2048, 256, 1),
    Case(PREFIX, 4096, 4096, 128, 1),
    Case(PREFIX, 4096, 4096, 256, 1),
)
_SECTIONS = (
    *("SpeedOfLight", "LaunchStats", "Occupancy", "MemoryWorkloadAnalysis", "WarpStateStats"),
    "ComputeWorkloadAnalysis",
)


def ncu_command(report: Path) -> list[str]:
    """Profiles what `main` launches between the profiler's start and stop; text into `report`."""
    sections = [word for section in _SECTIONS for word in ("--section", section)]
    options = ["--clock-control", "none", "--profile-from-start", "off", "-k", "regex:attention_kernel"]
    return ["ncu", *options, *sections, "--log-file", str(report), sys.executable, "-m", "loadtest.bench.gpu_profile"]


def main() -> None:
    """Warm up, then launch every case once while the profiler looks."""
    if not torch.cuda.is_available():
        sys.exit("gpu_profile: torch finds no CUDA device here")
    with torch.inference_mode():
        for case in CASES:
            given = inputs(case, torch.device("cuda"))
            for _ in range(3):
                launch(given, 0)
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            launch(given, len(given.sets) - 1)
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
            print(case.described, flush=True)


if __name__ == "__main__":
    main()

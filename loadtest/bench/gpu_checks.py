"""The second script for a machine with a CUDA device, four minutes: what `gpu_all` leaves out.

`python -m loadtest.bench.gpu_checks --out DIR` runs the tests that need a device, ungated, and beside them the laws in
bfloat16, while the rest is compiled; then the engine, alone and through gRPC, int8 and float8 pages, and
compute-sanitizer. `--rehearse` does it without a device: tests are collected, laws and engine compute something tiny on
the CPU, kernels launch on tensors without memory. `--wheels` as for `gpu_all`.
"""

import sys
from pathlib import Path

from loadtest.bench.gpu_run import Planned, script
from loadtest.bench.gpu_wheels import SERVING, TESTING

SECONDS = 240.0
MOST_S = {
    "prewarm": 110.0,
    "laws": 110.0,
    "tests": 110.0,
    "engine": 90.0,
    "grpc": 60.0,
    "codes": 45.0,
    "sanitizer": 60.0,
    "bars": 20.0,
}
"""Seconds after which a step is killed, in their order; the first two run beside the tests."""
STALLED_S = 40.0
"""Of those whose cells are seconds apart: then the cell is left out."""
_OWN = {"laws": "gpu_laws", "tests": "gpu_device_tests", "engine": "gpu_engine", "grpc": "gpu_grpc"}
"""Modules that are one step."""


def plan(_: Path, record: Path, rehearse: bool) -> list[Planned]:
    """All steps."""
    more = ("--record", str(record), "--seconds", "{seconds}", *(("--rehearse",) if rehearse else ()))
    own = (sys.executable, "-m", "loadtest.bench.gpu_check_steps")
    commands = {
        name: (sys.executable, "-m", f"loadtest.bench.{module}", *more, "{plain}") for name, module in _OWN.items()
    }
    commands["codes"] = (*own, "codes", *more, "{plain}")
    commands["prewarm"] = (*own, "prewarm", *more)
    commands["bars"] = (sys.executable, "-m", "loadtest.bench.gpu_bars", str(record))
    # A rehearsal of the sanitizer's launches is a step like another.
    looked_at = (
        ("loadtest.bench.gpu_check_steps", "small", *more) if rehearse else ("loadtest.bench.gpu_profile", "--memcheck")
    )
    commands["sanitizer"] = (sys.executable, "-m", *looked_at)
    return [
        Planned(
            name,
            commands[name],
            most,
            beside=name in ("prewarm", "laws"),
            stalled_s=STALLED_S if name in ("engine", "codes") else None,
            last=name == "bars",
        )
        for name, most in MOST_S.items()
    ]


if __name__ == "__main__":
    script(__doc__, plan, TESTING, SECONDS, {"grpc": SERVING})

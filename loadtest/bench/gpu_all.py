"""Everything that a machine with a CUDA device is asked, in seven minutes.

`python -m loadtest.bench.gpu_all --out DIR` does it. First all kernels are compiled on all cores, beside the
measurement of the device's two ceilings; then come correctness, stacks, kernels, block sizes, the stacks again with
those, NVIDIA's block and a profile, the most important first (`gpu_steps`). A step is a process of its own; a cell is
in `gpu.jsonl` as soon as it is measured, after what it computes has been compared with its reference. `--rehearse`
does the same without a device, where nothing is compiled or timed. `--wheels` names a folder of wheels for a machine
that has torch, triton and numpy alone (`gpu_wheels`).

It is no command of mfalcon, because the machine may have no typer.
"""

import sys
from pathlib import Path

from loadtest.bench.gpu_run import Planned, script
from loadtest.bench.gpu_wheels import MEASURING

SECONDS = 420.0
MOST_S = {
    "prewarm": 75.0,
    "ceilings": 60.0,
    "correctness": 45.0,
    "batch": 60.0,
    "long": 60.0,
    "kernels": 60.0,
    "hopper": 40.0,
    "sweep": 100.0,
    "again": 75.0,
    "nvidia": 60.0,
    "profile": 60.0,
    "bars": 20.0,
}
"""Seconds after which a step is killed, in their order. They are more than all have: what comes late is dropped."""

STALLED_S = 30.0
"""Without a new line of the record a step stands still: it is killed, and goes on behind what it had begun."""


def plan(out: Path, record: Path, rehearse: bool) -> list[Planned]:
    """All steps."""
    more = ("--rehearse",) if rehearse else ()
    measured = (sys.executable, "-m", "loadtest.bench.gpu_steps", "--record", str(record), "--seconds", "{seconds}")
    commands = {name: (*measured, *more, "{plain}", name) for name in MOST_S}
    commands["prewarm"] = (
        *(sys.executable, "-m", "loadtest.bench.gpu_prewarm", "--record", str(record), "--seconds", "{seconds}"),
        *more,
    )
    commands["bars"] = (sys.executable, "-m", "loadtest.bench.gpu_bars", str(record))
    if not rehearse:
        commands["profile"] = (sys.executable, "-m", "loadtest.bench.gpu_profile", "--ncu", str(out / "ncu.txt"))
    return [
        Planned(
            name,
            commands[name],
            most,
            beside=name == "prewarm",
            stalled_s=None if name in ("prewarm", "profile", "bars") else STALLED_S,
            last=name == "bars",
        )
        for name, most in MOST_S.items()
    ]


if __name__ == "__main__":
    script(__doc__, plan, MEASURING, SECONDS)

"""The steps of `loadtest.bench.gpu_all`: what each one measures.

`python -m loadtest.bench.gpu_steps NAME --record FILE --seconds S` is one step, a process of its own. `--rehearse` runs
it on a device that is only pretended: every cell is reached, every launch counted and its arguments checked.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kernels.gpu import configs
from loadtest.bench import gpu_hopper, gpu_profile, gpu_splits, gpu_stacks, gpu_tune, kernels
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case
from loadtest.bench.gpu_pretend import H100, META, CountingClock, Launches, pretended
from loadtest.bench.gpu_record import CEILINGS, CELL, LAW, MACHINE, TUNED, Record, Turns, read
from loadtest.bench.gpu_run import START_S, Asked, asked
from loadtest.bench.gpu_stacks import Law, StackCell, StackOptions
from loadtest.bench.gpu_timing import Ceilings, DeviceTimer, Place, bench_device, probe
from loadtest.bench.gpu_worlds import DLRM_V3, NVIDIA, NVIDIA_CACHED, Scenario
from loadtest.bench.kernels import KernelOptions
from loadtest.report.machine import commit, this_machine
from loadtest.report.result import say

BATCH = Scenario("32 users n=1024 m=2048", DLRM_V3, (1024,) * 32, 2048, microbatches=(65536, 16384, 4096))
LONG = tuple(Scenario(f"n=6673 m={m}", DLRM_V3, (6673,), m) for m in (2048, 512, 256))
ODD = Scenario("odd lengths", DLRM_V3, (777, 2001), 256)
EIGHT = tuple(Scenario(f"{b} of 4096 m=256", NVIDIA, (4096,) * b, 256, cached=NVIDIA_CACHED) for b in (1, 8))
CASES = (
    *(Case(TARGET, n, m, 128, 1) for n in (4096, 6673, 16384) for m in (2048, 1024)),
    *(Case(PREFIX, n, n, 128, 1) for n in (4096, 6673)),
    Case(TARGET, 4096, 2048, 256, 1),
    Case(PREFIX, 4096, 4096, 256, 1),
)
ASSUMED = Ceilings(798e12, "bfloat16", 8192, 3.0e12, 2048)
"""Of an H100, for a rehearsal."""
_SAMPLED_S, _SHORT_S = 0.15, 0.03
_BY_HAND_S = 2.0
"""Of a scenario outside the clock: random numbers, its reference in float32, graphs."""
_RUNS = 8
"""Of an action beyond those that are sampled: warm-ups, and the first looks of a `DeviceTimer`."""


@dataclass(frozen=True, slots=True)
class Step:
    """sampled_s: spent on each clock of a cell. scenarios: of stacks, how many."""

    name: str
    run: Callable[[Place, Record], None]
    sampled_s: float = _SAMPLED_S
    scenarios: int = 0


def _ceilings(where: Place, record: Record) -> None:
    record.add(MACHINE, {**asdict(this_machine(where.device)), "commit": commit()})
    record.add(CEILINGS, probe(where.clock, where.device, torch.bfloat16))


def _stacks(scenarios: Sequence[Scenario], where: Place, record: Record) -> None:
    def write(found: Law | StackCell) -> None:
        if isinstance(found, Law):
            record.add(LAW, {**asdict(found), "holds": found.holds})
        else:
            record.add(CELL, found)

    gpu_stacks.run(StackOptions(scenarios=tuple(scenarios), with_float32=False), say, where=where, write=write)


def time_kernels(cases: Sequence[Case], where: Place, record: Record) -> None:
    """Every case a cell."""
    options = KernelOptions(cases=tuple(cases), with_others=False)
    kernels.run(options, say, where=where, write=lambda cell: record.add(CELL, cell))


def _sweep(where: Place, record: Record) -> None:
    """Splits, then block sizes, stored where the next steps find them and copied beside the record."""
    gpu_splits.sweep(where, lambda cell: record.add(CELL, cell))
    beside = record.path.parent / "tuned"
    folder = beside if where.device == META else configs.TUNED

    def failed(job: str, error: str) -> None:
        record.add(CELL, {"name": job, "error": error})

    wanted = gpu_tune.headline_jobs
    gpu_tune.tune(folder, say, where=where, wanted=wanted, write=lambda it: record.add(TUNED, it), failed=failed)
    if folder != beside and folder.is_dir():
        shutil.copytree(folder, beside, dirs_exist_ok=True)


def _hopper(where: Place, record: Record) -> None:
    gpu_hopper.compare(CASES, where, lambda cell: record.add(CELL, cell))


def _profile(where: Place, record: Record) -> None:
    gpu_profile.launches(where.device)


STEPS = (
    Step("ceilings", _ceilings),
    Step("correctness", partial(_stacks, (ODD,)), scenarios=1),
    Step("batch", partial(_stacks, (BATCH,)), scenarios=1),
    Step("long", partial(_stacks, LONG), scenarios=3),
    Step("kernels", partial(time_kernels, CASES)),
    Step("hopper", _hopper, _SHORT_S),
    Step("sweep", _sweep, _SHORT_S),
    Step("again", partial(_stacks, (BATCH, *LONG)), scenarios=4),
    Step("nvidia", partial(_stacks, EIGHT), scenarios=2),
    Step("profile", _profile),
)
"""In their order."""


def rehearsed(steps: Sequence[Step], where: configs.Device, record: Callable[[Step], Record]) -> Iterator[Launches]:
    """What has been launched by the end of each step on a device that is not there."""
    with pretended(where) as launches, torch.inference_mode():
        for step in steps:
            clock = CountingClock(launches)
            before, known = launches.count, len(launches.found)
            file = record(step)
            step.run(Place(META, clock, ceilings=ASSUMED, turns=Turns(file)), file)
            new = launches.count - before, len(launches.found) - known
            file.predict(_predicted(step, clock), *new, sorted(set(launches.wrong)))
            yield launches


def _predicted(step: Step, clock: CountingClock) -> float:
    """Seconds of a step, its binaries compiled before."""
    sampled = clock.num_clocks * step.sampled_s + _RUNS * clock.seconds
    return START_S + sampled + step.scenarios * _BY_HAND_S


def known_ceilings(path: Path) -> Ceilings | None:
    """Those of this run, once they are measured."""
    found: list[dict[str, Any]] = read(path, CEILINGS)
    names = Ceilings.__dataclass_fields__
    return Ceilings(**{name: found[-1][name] for name in names}) if found else None


def run(steps: Sequence[Step], given: Asked) -> None:
    """The step that is asked for, in this process. Exits with 1 if a rehearsal finds what a device would refuse."""
    (step,) = [step for step in steps if step.name == given.name]
    record = Record(given.record, given.name)
    if given.rehearse:
        (launches,) = rehearsed([step], H100, lambda _: record)
        sys.exit("\n".join(sorted(set(launches.wrong))) or 0)
    device = bench_device(quick=False)
    timer = DeviceTimer(device, step.sampled_s)
    turns = Turns(record, timer.wait)
    step.run(Place(device, timer, given.end, known_ceilings(given.record), turns, given.plain), record)


if __name__ == "__main__":
    run(STEPS, asked(__doc__, [step.name for step in STEPS]))

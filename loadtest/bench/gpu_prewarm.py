"""Compile all that the steps will launch, on all cores and without the device, before they launch it.

A rehearsal finds the specialisations; processes of a pool compile them into Triton's cache, where the steps find them:
a binary's name in the cache is a hash of the sources that it is made of, its specialisation, the options, the
architecture, the compiler's version and some variables of the environment (TRITON_DISABLE_LINE_INFO among them), and
all of these are the same in a process that only names its architecture.

`python -m loadtest.bench.gpu_prewarm --record FILE --seconds S` does it for `gpu_all`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory

import torch
import triton

from kernels.gpu import configs
from loadtest.bench.gpu_pool import Work
from loadtest.bench.gpu_pretend import H100, Driver, Specialisation
from loadtest.bench.gpu_record import PREWARMED, Record
from loadtest.bench.gpu_run import START_S, Asked, asked
from loadtest.bench.gpu_steps import STEPS, Step, rehearsed
from mfalcon.cores import owned_cores

_REPEATED = ("batch", "again")
"""Steps that launch nothing that another one does not."""
_COMPILE_S, _CORES = 1.8, 16
"""Of one core for a specialisation, as measured here, and the cores that are assumed beside a device."""


@dataclass(frozen=True, slots=True)
class Prewarmed:
    """How far it came. failed: of specialisations that do not compile, and why."""

    found: int
    compiled: int
    found_s: float
    seconds: float
    cpu_s: float
    failed: tuple[str, ...]


def specialisations(steps: Sequence[Step], where: configs.Device) -> Iterator[Specialisation]:
    """Those that the steps launch, in the order of their first launch, as soon as each step is rehearsed."""
    known = 0
    with TemporaryDirectory() as folder:
        file = Path(folder) / "rehearsal.jsonl"
        for launches in rehearsed(steps, where, lambda step: Record(file, step.name)):
            yield from list(launches.found.values())[known:]
            known = len(launches.found)


def compiled(one: Specialisation) -> float:
    """Compile one in this process, which has called `pretend`. Returns seconds."""
    begun = time.monotonic()
    resolve_name(one.kernel).preload(one.data)
    return time.monotonic() - begun


def pretend(architecture: int) -> None:
    """What a process of the pool does first."""
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(Driver(architecture))


def prewarm(steps: Sequence[Step], where: configs.Device, seconds: float) -> Prewarmed:
    """Compile what the steps launch; what is not done when the seconds are over is left to the steps."""
    begun, found_s = time.monotonic(), 0.0
    found, failed, spent = [], [], []

    def as_found() -> Iterator[Specialisation]:
        nonlocal found_s
        for one in specialisations(steps, where):
            found.append(one)
            yield one
        found_s = time.monotonic() - begun

    work = Work(compiled, owned_cores(), partial(pretend, where.architecture))
    for one, result in work.done(as_found(), begun + seconds):
        if isinstance(result, BaseException):
            failed.append(f"{one.kernel}: {type(result).__name__}: {result}"[:500])
        else:
            spent.append(result)
    return Prewarmed(len(found), len(spent), found_s, time.monotonic() - begun, sum(spent), tuple(failed))


def warm(steps: Sequence[Step], given: Asked) -> None:
    """For this machine's device, or where there is none for an H100; a rehearsal compiles nothing."""
    where = configs.device(torch.device("cuda", 0)) if torch.cuda.is_available() else H100
    begun = time.monotonic()
    if given.rehearse:
        found = len(list(specialisations(steps, where)))
        found_s = time.monotonic() - begun
        done = Prewarmed(found, 0, found_s, found_s, 0.0, ())
        compiling_s = found * _COMPILE_S / _CORES
        Record(given.record, "prewarm").predict(START_S + found_s + compiling_s, specialisations=found)
    else:
        done = prewarm(steps, where, given.end - begun)
    Record(given.record, "prewarm").add(PREWARMED, done)
    print(done, flush=True)


if __name__ == "__main__":
    warm([step for step in STEPS if step.name not in _REPEATED], asked(__doc__))

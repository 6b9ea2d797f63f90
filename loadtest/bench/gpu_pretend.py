"""A device that is not there: Triton's launches on tensors without memory, counted and checked, nothing compiled.

`pretended` is the fake driver of every rehearsal and of the search for what is to be compiled ahead of time. Tensors
are torch's of the device "meta", whose addresses are offsets into their memory, so alignment is as on a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels.gpu import attention, configs
from loadtest.report.timing import Spread

META = torch.device("meta")
H100 = configs.Device("NVIDIA H100 80GB HBM3", 90, 132)
"""What is pretended unless something else is asked for."""
LAUNCH_US = 120.0
"""Of the host for one launch by Triton, as on an H200 whose host has 16 cores: 90 to 160."""
_MOST_GRID = (2**31 - 1, 65_535, 65_535)
"""Programs along each side of a grid (CUDA C programming guide, compute capabilities)."""
_WARP = 32
_MOST_THREADS = 1_024


@dataclass(frozen=True, slots=True)
class Specialisation:
    """One binary. kernel: module and name. data: all of it, as `JITFunction.preload` takes it."""

    kernel: str
    data: str


@dataclass(slots=True)
class Launches:
    """What was launched on a pretended device. wrong: what a device would have refused or read wrongly."""

    count: int = 0
    found: dict[tuple[str, str], Specialisation] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def note(self, kernel: JITFunction, arguments: dict[str, object], grid: object) -> None:
        """One launch."""
        self.count += 1
        self.wrong += [f"{kernel.fn.__name__}: {text}" for text in (*_of_grid(grid), *_of_arguments(arguments))]


class Driver:
    """Names a device's architecture to Triton, and nothing more."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> GPUTarget:
        """As NVIDIA's driver names it."""
        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        """There is one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """There is one."""
        return 0


@contextmanager
def pretended(where: configs.Device = H100) -> Iterator[Launches]:
    """Triton computes for this device on tensors of META: every launch is noted, none is compiled or run."""
    launches, honest = Launches(), JITFunction.run

    def run(kernel: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> object:
        names = [parameter.name for parameter in kernel.params]
        launches.note(kernel, {**dict(zip(names, args, strict=False)), **options}, grid)
        return honest(kernel, *args, grid=grid, warmup=True, **options)

    def keep(*, key: str, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        kernel = f"{fn.module}:{fn.jit_function.fn.__qualname__}"
        launches.found.setdefault((kernel, key), Specialisation(kernel, compile["specialization_data"]))
        return True  # leave it at that

    triton.runtime.driver.set_active(Driver(where.architecture))  # for good: a process pretends, or it does not
    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(knobs.runtime, "jit_cache_hook", keep),
        mock.patch.object(configs, "device", lambda _: where),
        mock.patch.object(configs, "INTERPRETER", where),  # what is asked for tensors that are not on CUDA
        mock.patch.object(attention, "usable", lambda *_: where.architecture // 10 == 9),
    ):
        yield launches


class CountingClock:
    """Stands in for a `DeviceTimer`: runs once, counts launches, and gives an estimate of their host time.

    num_clocks: how often it was asked. seconds: of all that it ran.
    """

    def __init__(self, launches: Launches) -> None:
        self._launches = launches
        self.num_clocks = 0
        self.seconds = 0.0

    def device(self, run: Any) -> Spread:
        """Of no samples."""
        before = self._launches.count
        run(0)
        estimate = LAUNCH_US / 1e3 * max(1, self._launches.count - before)
        self.num_clocks += 1
        self.seconds += estimate / 1e3
        return Spread(estimate, estimate, estimate, 0)

    def request(self, run: Any) -> Spread:
        """The same: there is one clock."""
        return self.device(run)

    def wait(self) -> None:
        """Nothing is under way."""


def _of_grid(grid: object) -> Iterator[str]:
    if not isinstance(grid, tuple) or not 1 <= len(grid) <= 3:
        yield f"grid {grid}"
        return
    for size, most in zip(grid, _MOST_GRID, strict=False):
        if not isinstance(size, int) or not 1 <= size <= most:
            yield f"grid {grid}: {size} is not within 1 to {most}"


def _of_arguments(arguments: dict[str, object]) -> Iterator[str]:
    warps = arguments.get("num_warps", 4)
    if not isinstance(warps, int) or warps & (warps - 1) or not 1 <= warps <= _MOST_THREADS // _WARP:
        yield f"num_warps {warps}"
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if value.dtype == torch.float64:
                yield f"{name}: float64 on a device"
            if value.data_ptr() % value.dtype.itemsize:
                yield f"{name}: an address that is no multiple of {value.dtype.itemsize}"
            if value.ndim and value.shape[-1] > 1 and value.stride(-1) != 1:
                yield f"{name}: its last dimension is not dense"
            if value.is_floating_point() and value.device != META:
                yield f"{name}: on {value.device}, not on the device"
        elif isinstance(value, int) and not isinstance(value, bool) and not -(2**31) <= value < 2**31:
            yield f"{name}: {value} does not fit 32 bits"

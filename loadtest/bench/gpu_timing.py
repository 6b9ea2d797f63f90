"""How work on a device is timed, and the two ceilings of the device that it is held against.

Two clocks. `device`: events around what a run queues, behind a kernel that spins until the host has queued all of it,
so that no gap is the host's. `request`: the host's clock from an idle device until the device is idle again. In
Triton's interpreter there is one clock, the host's, and no claim.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loadtest.bench.gpu_record import Turns
from loadtest.report.timing import Spread, spread
from mfalcon.errors import ConfigError

Run = Callable[[int], object]
"""One run; its number says which of several inputs to take."""

_CYCLES_PER_SECOND = 2.0e9
"""Of a spinning kernel, at least: none of these devices clocks higher."""
_SAMPLE_S = 2e-4
"""Least time between two events: theirs are half a microsecond apart from the truth."""
_MOST_RUNS = 64
_LEAST_SAMPLES, _MOST_SAMPLES = 5, 200


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Measured rates of a device, per second. copy_bytes: read and written, of a large copy on the device."""

    matmul_flops: float
    matmul_dtype: str
    matmul_size: int
    copy_bytes: float
    copy_mib: int

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The roofline."""
        return max(flops / self.matmul_flops, num_bytes / self.copy_bytes)

    @property
    def described(self) -> str:
        """For people."""
        size = self.matmul_size
        return (
            f"{self.matmul_dtype} product of {size} x {size} x {size} {self.matmul_flops / 1e12:.4g} TFLOP/s, copy of "
            f"{self.copy_mib} MiB {self.copy_bytes / 1e9:.4g} GB/s read and written"
        )


class Clock(Protocol):
    """Times runs: a `DeviceTimer`, or what counts instead in a rehearsal."""

    def device(self, run: Run) -> Spread:
        """Time on the device."""
        ...

    def request(self, run: Run) -> Spread:
        """Time on the host's clock, the device idle before and after."""
        ...

    def wait(self) -> None:
        """Until the device is idle."""
        ...


class DeviceTimer:
    """Medians and spreads of runs on one device. seconds: to spend on each, beyond the fewest samples."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self._device, self._seconds = device, seconds
        self._on_cuda = device.type == "cuda"

    def device(self, run: Run) -> Spread:
        """Time on the device."""
        if not self._on_cuda:
            return self.request(run)
        self._warm_up(run)
        queued = self._host_seconds(run)
        once = self._events(run, 0, 1, queued)
        runs = max(1, min(_MOST_RUNS, round(_SAMPLE_S / max(once, 1e-7))))
        samples: list[float] = []
        while len(samples) < _LEAST_SAMPLES or (sum(samples) * runs < self._seconds and len(samples) < _MOST_SAMPLES):
            samples.append(self._events(run, len(samples) * runs, runs, queued))
        return spread(samples)

    def request(self, run: Run) -> Spread:
        """Time on the host's clock, the device idle before and after."""
        self._warm_up(run)
        samples: list[float] = []
        while len(samples) < self._least or (sum(samples) < self._seconds and len(samples) < _MOST_SAMPLES):
            self.wait()
            start = time.perf_counter()
            run(len(samples))
            self.wait()
            samples.append(time.perf_counter() - start)
        return spread(samples)

    def wait(self) -> None:
        """Until the device is idle. Raises whatever went wrong there."""
        if self._on_cuda:
            torch.cuda.synchronize(self._device)

    @property
    def _least(self) -> int:
        return _LEAST_SAMPLES if self._on_cuda else 1

    def _warm_up(self, run: Run) -> None:
        for index in range(3 if self._on_cuda else 0):
            run(index)
        self.wait()

    def _host_seconds(self, run: Run) -> float:
        start = time.perf_counter()
        run(0)
        queued = time.perf_counter() - start
        self.wait()
        return queued

    def _events(self, run: Run, first: int, runs: int, queued: float) -> float:
        """Seconds of one of `runs` runs."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(int((2 * queued * runs + 5e-5) * _CYCLES_PER_SECOND))
        begin.record()
        for index in range(first, first + runs):
            run(index)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / runs


def bench_device(*, quick: bool) -> torch.device:
    """The CUDA device, or for a quick run the CPU with Triton's interpreter.

    Raises ConfigError where there is neither.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    from triton import knobs  # noqa: PLC0415 (triton is an extra)

    if quick and knobs.runtime.interpret:
        return torch.device("cpu")
    raise ConfigError(
        "device: torch finds no CUDA device here; --quick runs tiny sizes in Triton's interpreter, if TRITON_INTERPRET "
        "is 1 in the environment"
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where a benchmark runs. end: of the monotonic clock, after which no cell is begun. ceilings: if known already.
    turns: what is begun there; none where nobody begins it again. plain: whether to use no kernels for Hopper.
    """

    device: torch.device
    clock: Clock
    end: float = math.inf
    ceilings: Ceilings | None = None
    turns: Turns | None = None
    plain: bool = False

    def begin(self, item: str, *, needed: bool = False) -> bool:
        """See `Turns.begin`."""
        return self.turns is None or self.turns.begin(item, needed=needed)

    @property
    def time_is_up(self) -> bool:
        """Whether to begin nothing more."""
        return time.monotonic() > self.end


def place(seconds: float, budget_s: float, *, quick: bool) -> Place:
    """This machine's, as `bench_device` has it. seconds: to spend on each cell."""
    device = bench_device(quick=quick)
    timer = DeviceTimer(device, seconds if device.type == "cuda" else 0.0)
    return Place(device, timer, time.monotonic() + budget_s)


def probe(timer: Clock, device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both ceilings: a large product of random numbers through torch, and a large copy."""
    on_cuda = device.type == "cuda"
    size, mib = ((8192 if dtype.itemsize == 2 else 4096), 2048) if on_cuda else (256, 16)
    generator = generator_on(device, 0)
    a, b = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    flops = 2 * size**3 / (timer.device(lambda _: torch.mm(a, b, out=out)).median_ms / 1e3)
    source = torch.randint(0, 255, (mib << 20,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes / (timer.device(lambda _: target.copy_(source)).median_ms / 1e3)
    return Ceilings(flops, name_of(dtype), size, moved, mib)


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """Of random numbers on a device; tensors without memory take any."""
    return torch.Generator("cpu" if device.type == "meta" else device).manual_seed(seed)


def name_of(dtype: torch.dtype) -> str:
    """As options say it."""
    return str(dtype).removeprefix("torch.")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|; infinity if anything found is not a number. 0 without memory: a rehearsal."""
    if found.is_meta:
        return 0.0
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    scale = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / scale if scale else float("inf")

"""The attention kernels for Hopper beside the plain ones: the same inputs, what each gives, how long each takes."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.gpu.hopper import prefix_attention, target_attention
from kernels.gpu.hopper.launch import takes
from kernels.gpu.hopper.self_check import Kind, deviation
from loadtest.bench.gpu_cases import PREFIX, TARGET, Case, Inputs, checked, inputs
from loadtest.bench.gpu_pretend import META
from loadtest.bench.gpu_timing import Place
from loadtest.bench.kernels import BOUNDS, plain_launch
from loadtest.report.timing import Spread

_DIMS = (128, 256)


@dataclass(frozen=True, slots=True)
class HopperCell:
    """relative_error: of the Hopper kernel, from float64. skipped, error: why there is no time."""

    case: Case
    splits: int | None = None
    relative_error: float | None = None
    hopper_ms: Spread | None = None
    plain_ms: Spread | None = None
    skipped: str | None = None
    error: str | None = None


def compare(cases: Sequence[Case], where: Place, write: Callable[[HopperCell], None]) -> None:
    """Every case; one that fails takes no other with it."""
    with torch.inference_mode():
        if where.device == META:  # what a server compiles to check itself
            for op in (TARGET, PREFIX):
                for dim in _DIMS:
                    with suppress(NotImplementedError, RuntimeError):  # without memory nothing can be compared
                        deviation(META, Kind(op, torch.bfloat16, dim, dim, False))
        for case in cases:
            if where.time_is_up:
                return
            if not where.begin(case.described):
                continue
            try:
                write(_timed(case, where))
            except Exception as raised:  # noqa: BLE001 (whatever a device refuses ends a cell, not the run)
                write(HopperCell(case, error=f"{type(raised).__name__}: {raised}"[:500]))


def _timed(case: Case, where: Place) -> HopperCell:
    if where.device != META and torch.cuda.get_device_capability(where.device)[0] != 9:
        return HopperCell(case, skipped="this device is not Hopper's")
    given = inputs(case, where.device)
    rows = (given.q, given.k, given.v) if case.op == TARGET else (given.q,)
    if not takes(rows, given.sets[0], given.batch):
        return HopperCell(case, skipped=f"the Hopper kernel does not take tiles of {given.batch.tile_rows} rows")
    cell = HopperCell(case, splits=given.batch.splits)
    worst = checked(_launch(given, 0).sum(0), given, 0)
    cell = replace(cell, relative_error=worst)
    if not worst <= BOUNDS[case.dtype]:
        return replace(cell, error=f"differs from float64 by {worst:.1e}")
    hopper_ms = where.clock.device(lambda index: _launch(given, index % len(given.sets)))
    plain_ms = where.clock.device(lambda index: plain_launch(given, index % len(given.sets)))
    return replace(cell, hopper_ms=hopper_ms, plain_ms=plain_ms)


def _launch(given: Inputs, of_set: int) -> Tensor:
    kv, form = given.sets[of_set], {"logit_scale": given.scale, "norm": given.norm}
    if given.case.op == TARGET:
        return target_attention.target_attention_parts(given.q, given.k, given.v, kv, given.batch, None, None, **form)
    return prefix_attention.prefix_attention_parts(given.q, kv, given.batch, None, **form)

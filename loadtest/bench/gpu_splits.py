"""Over how many programs to split a prefix: one launch of target attention at every number, on the same inputs.

No number compiles anything, so a sweep takes milliseconds. What a split costs afterwards, `norm_gate` that adds its
parts, is counted in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.gpu.norms import norm_gate
from loadtest.bench.gpu_cases import TARGET, Case, Inputs, inputs
from loadtest.bench.gpu_timing import Place, relative_error
from loadtest.bench.kernels import BOUNDS, launch
from loadtest.report.timing import Spread

CASES = (
    *(Case(TARGET, 6673, m, 128, 1) for m in (2048, 512, 256)),
    *(Case(TARGET, 4096, m, 128, 1) for m in (1024, 2048)),
)
SPLITS = (1, 2, 3, 4, 5, 6, 8, 12, 16)


@dataclass(frozen=True, slots=True)
class SplitCell:
    """rule: what `num_splits` would take. error: why there is no time."""

    case: Case
    splits: int
    rule: int
    ms: Spread | None = None
    error: str | None = None


def sweep(where: Place, write: Callable[[SplitCell], None], cases: Sequence[Case] = CASES) -> None:
    """Every case at every number; one that fails, or differs from the rule's, says so."""
    with torch.inference_mode():
        for case in cases:
            if not where.begin(f"splits of {case.described}", needed=True):
                continue
            try:
                given = inputs(case, where.device)
                expected = launch(given, 0, plain=where.plain).sum(0)
            except Exception as raised:  # noqa: BLE001 (whatever a device refuses ends a case, not the run)
                write(SplitCell(case, 0, 0, error=f"{type(raised).__name__}: {raised}"[:500]))
                continue
            for splits in SPLITS:
                if where.time_is_up:
                    return
                if where.begin(f"{case.described}, {splits} splits"):
                    write(_timed(replace(given, batch=replace(given.batch, splits=splits)), expected, given, where))


def _timed(given: Inputs, expected: Tensor, rule: Inputs, where: Place) -> SplitCell:
    cell = SplitCell(given.case, given.batch.splits, rule.batch.splits)
    try:
        worst = relative_error(launch(given, 0, plain=where.plain).sum(0), expected)
        if not worst <= BOUNDS[given.case.dtype]:
            return replace(cell, error=f"differs from the rule's by {worst:.1e}")
        u = given.v.flatten(1)

        def run(index: int) -> Tensor:
            parts = launch(given, index % len(given.sets), plain=where.plain)
            return norm_gate(parts.flatten(2), u, None, None, 1e-6, concat=True)

        return replace(cell, ms=where.clock.device(run))
    except Exception as raised:  # noqa: BLE001 (whatever a device refuses ends a cell, not the run)
        return replace(cell, error=f"{type(raised).__name__}: {raised}"[:500])

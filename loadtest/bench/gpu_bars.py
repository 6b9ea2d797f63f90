"""What a run on a device has come to, read off its record: how each step ended, what failed, the bars.

`python -m loadtest.bench.gpu_bars RECORD` prints it, of a run that was cut short too.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.bench import gpu_stacks, kernels
from loadtest.bench.gpu_cases import Case
from loadtest.bench.gpu_record import AGAIN, CEILINGS, CELL, LAW, LOST, PREWARMED, REHEARSED, STEP, TUNED, read
from loadtest.bench.gpu_stacks import StackCell
from loadtest.bench.kernels import KernelCell
from loadtest.report.result import bar_table
from loadtest.report.table import Part, Table, as_text
from loadtest.report.timing import Spread

_NOT_PASSED = ("failed", "error", "no outcome")
_STACKS, _KERNELS = ("correctness", "batch", "long", "again", "nvidia"), ("kernels",)


def page(record: Path) -> Iterator[Part]:
    """For people."""
    for line in read(record, CEILINGS):
        yield f"ceilings: {line['matmul_flops'] / 1e12:.4g} TFLOP/s, {line['copy_bytes'] / 1e9:.4g} GB/s"
    for line in read(record, PREWARMED):
        yield f"prewarm: {line['compiled']} of {line['found']} specialisations in {line['seconds']:.0f} s"
        yield from (f"does not compile: {text}" for text in line["failed"])
    laws, cells, tuned = read(record, LAW), read(record, CELL), read(record, TUNED)
    yield f"{len(cells)} cells, {len(laws)} laws, {len(tuned)} shapes tuned"
    yield from (f"RED {law['scenario']}: {law['statement']}: {law['worst']}" for law in laws if not law["holds"])
    yield from (f"FAILED {_name(cell)}: {cell['error']}" for cell in cells if cell.get("error"))
    yield from (f"LOST {line['step']}: {line['item']}: {line['why']}" for line in read(record, LOST))
    yield from (
        f"without the kernels for Hopper from {line['step']}: {line['item']} on: {line['why']}"
        for line in read(record, AGAIN)
    )
    tests = [cell for cell in cells if "test" in cell]
    yield from (f"NOT PASSED {cell['test']}: {cell['outcome']}" for cell in tests if cell["outcome"] in _NOT_PASSED)
    asked = [
        (cell["name"], f"{cell['p50_ms']:.3f}", f"{cell['per_second']:.0f}", " ".join(cell["sources"]))
        for cell in cells
        if cell["step"] in ("engine", "grpc") and cell["error"] is None
    ]
    if asked:
        yield Table("Engine", ("what", "p50 ms", "ranks/s", "states from"), asked)
    steps = [(line["step"], line["result"], f"{line['seconds']:.0f}") for line in read(record, STEP)]
    yield Table("Steps", ("step", "ended", "s"), steps)
    if rehearsed := read(record, REHEARSED):
        rows = [
            (line["step"], *(str(line[name]) for name in ("launches", "specialisations")), f"{line['predicted_s']:.0f}")
            for line in rehearsed
        ]
        yield Table("Rehearsed", ("step", "launches", "specialisations", "predicted s"), rows)
    stacks = [_stack_cell(cell) for cell in cells if cell["step"] in _STACKS]
    alone = [_kernel_cell(cell) for cell in cells if cell["step"] in _KERNELS]
    if (alone or stacks) and not rehearsed:
        yield bar_table([*kernels.bars(alone), *gpu_stacks.bars(stacks)])


def main() -> None:
    """Of the record that is named."""
    print(as_text(page(Path(sys.argv[1]))))


def _name(cell: dict[str, Any]) -> str:
    what = cell.get("scenario") or cell.get("case") or cell.get("name") or "-"
    return f"{cell['step']}: {what} {cell.get('path', '')}"


def _stack_cell(cell: dict[str, Any]) -> StackCell:
    fields = {name: cell[name] for name in StackCell.__dataclass_fields__}
    return StackCell(**fields | {name: _spread(cell[name]) for name in ("device_ms", "request_ms")})


def _kernel_cell(cell: dict[str, Any]) -> KernelCell:
    fields = {name: cell[name] for name in KernelCell.__dataclass_fields__}
    return KernelCell(**fields | {"case": Case(**cell["case"]), "ms": _spread(cell["ms"]), "beside": ()})


def _spread(fields: dict[str, Any] | None) -> Spread | None:
    return None if fields is None else Spread(**fields)


if __name__ == "__main__":
    main()

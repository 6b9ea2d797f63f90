"""The attention kernels alone: TFLOP/s, bytes/s, share of the measured roofline, and torch on the same device.

`mfalcon bench kernels` runs it, and `loadtest.bench.gpu_all` where there is torch, triton and numpy, nothing
else. Every cell is held against float64 before it is timed, and a file is written after every cell.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from kernels.gpu import prefix_attention, target_attention
from kernels.gpu.attention import prefix_attention_parts, target_attention_parts
from loadtest.bench.gpu_cases import FP8_PRODUCTS, TARGET, TINY, Case, Inputs, checked, grid, inputs
from loadtest.bench.gpu_competitors import competitors
from loadtest.bench.gpu_timing import Ceilings, Place, name_of, place, probe
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread

NOTES = (
    "ms: device time of one launch, median, fastest and slowest; the kernel as a stack calls it, whose splits of a "
    "prefix are added by the norm that follows",
    "flops: 4 head_dim num_heads per pair of a query and a key that it sees; bytes: q, k, v and the output once, every "
    "user's pages once (codes and scales as they stand there), in the compute dtype",
    "roofline: the larger of flops over the measured matrix product and bytes over the measured copy, same run and "
    "device; fraction = roofline / ms",
    "pages take turns among so many sets that the second-level cache cannot hold them all (num_sets), as every layer "
    "of a stack reads its own; queries stay where they are, as a projection has just written them",
    "relative_error: |out - ref| / |ref| on sampled rows against float64 on the same numbers, before the clock; every "
    "row must be finite on poisoned memory; a cell above error_bound has no time",
    "torch eager gathers pages and computes user by user (kernels/paged_reference.py); torch.compile is dense SiLU "
    "attention on keys gathered outside the clock; dense masked is one attention over all tokens of a user, prefix "
    "rows included",
    "weights without bias: the kernels' bias is measured in the stacks",
)
BOUNDS = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 6e-3}
"""Relative error of the norm: sums in another order; weights and output rounded once each, SiLU off by 2**-12."""
FP8_BOUND = 6e-2
"""The same with products of float8: queries and weights of four significant bits (tests/kernels/test_fp8_reference.py
finds 4e-2).
"""
MATMUL_BAR = 0.6


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What to measure. cases: none for the whole grid, or on a CPU the tiny ones. seconds: to spend on repeating each
    cell. budget_s: no cell is begun later than that. with_others: torch at every cell too, where its score matrices
    need no more than limit_gib.
    """

    cases: tuple[Case, ...] = ()
    seconds: float = 0.1
    budget_s: float = 1e9
    limit_gib: float = 16.0
    with_others: bool = True
    with_compile: bool = True
    quick: bool = False
    seed: int = 0
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """A competitor at a cell: its time, or why there is none."""

    name: str
    ms: Spread | None
    skipped: str | None
    relative_error: float | None
    times_slower: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCell:
    """One cell. ms, and all that follows from it, is None where `error` says what is wrong."""

    case: Case
    flops: int
    num_bytes: int
    roofline_ms: float
    bound_by: str
    error_bound: float
    tile_rows: int | None = None
    splits: int | None = None
    num_sets: int | None = None
    relative_error: float | None = None
    error: str | None = None
    ms: Spread | None = None
    tflops: float | None = None
    gigabytes_per_s: float | None = None
    fraction: float | None = None
    of_matmul: float | None = None
    beside: tuple[Beside, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelResult:
    """Everything that `mfalcon bench kernels` knows. left: cells that the budget left out."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    ceilings: tuple[Ceilings, ...] = ()
    cells: tuple[KernelCell, ...] = ()
    bars: tuple[Bar, ...] = ()
    left: int = 0

    @property
    def errors(self) -> list[str]:
        """Cells whose output is wrong."""
        return [f"{cell.case.described}: {cell.error}" for cell in self.cells if cell.error]


@dataclass(slots=True)
class _Ceilings:
    """Measured once for every dtype that a cell has, unless they are known."""

    where: Place
    found: dict[torch.dtype, Ceilings] = field(default_factory=dict)

    def of(self, dtype: torch.dtype) -> Ceilings:
        if dtype not in self.found:
            known = self.where.ceilings
            usable = known is not None and known.matmul_dtype == name_of(dtype)
            self.found[dtype] = known if usable and known else probe(self.where.clock, self.where.device, dtype)
        return self.found[dtype]


def run(
    options: KernelOptions,
    progress: Callable[[str], None],
    save: Callable[[KernelResult], None] = lambda _: None,
    where: Place | None = None,
    write: Callable[[KernelCell], None] = lambda _: None,
) -> KernelResult:
    """Measure every cell; one that fails says so. `save` is given what there is after each, `write` each cell.

    Raises ConfigError where nothing can run.
    """
    where = where or place(options.seconds, options.budget_s, quick=options.quick)
    device = where.device
    ceilings = _Ceilings(where)
    result = KernelResult("kernels", this_machine(device), options.commit or commit(), NOTES, bars=bars(()))
    cases = options.cases or (tuple(grid()) if device.type == "cuda" and not options.quick else TINY)
    limit = options.limit_gib if device.type == "cuda" else min(options.limit_gib, 0.25)
    with torch.inference_mode():
        for index, case in enumerate(cases):
            if where.time_is_up:
                return replace(result, left=len(cases) - index)
            if not where.begin(case.described):
                continue
            progress(f"{index + 1}/{len(cases)} {case.described}")
            cell = measured(case, where, ceilings.of(case.torch_dtype), options.seed)
            if cell.error is None and options.with_others:
                cell = replace(cell, beside=tuple(_beside(cell, where, limit, options)))
            write(cell)
            cells = (*result.cells, cell)
            result = replace(result, ceilings=tuple(ceilings.found.values()), cells=cells, bars=bars(cells))
            save(result)
    return result


def launch(given: Inputs, of_set: int, *, plain: bool = False) -> Tensor:
    """The kernel of a case, as a stack calls it: sums of each split [splits, num_rows, num_heads, head_dim]. plain: as
    a stack that uses no kernels for Hopper does.
    """
    kv, scale, norm = given.sets[of_set], given.scale, given.norm
    if given.case.op == TARGET:
        q, k, v = given.q, given.k, given.v
        return target_attention_parts(q, k, v, kv, given.batch, None, None, logit_scale=scale, norm=norm, plain=plain)
    return prefix_attention_parts(given.q, kv, given.batch, None, logit_scale=scale, norm=norm, plain=plain)


def plain_launch(given: Inputs, of_set: int) -> Tensor:
    """The same by the kernels that have block sizes, where a stack would take those for Hopper too."""
    kv, form = given.sets[of_set], {"logit_scale": given.scale, "norm": given.norm}
    if given.case.op == TARGET:
        return target_attention.target_attention_parts(
            given.q, given.k, given.v, kv, given.batch, None, None, reach=None, **form
        )
    return prefix_attention.prefix_attention_parts(given.q, kv, given.batch, None, reach=None, **form)


def measured(case: Case, where: Place, ceilings: Ceilings, seed: int) -> KernelCell:
    """One cell: right first, then timed."""
    roofline = ceilings.seconds(case.flops, case.num_bytes)
    computes = case.flops / ceilings.matmul_flops >= case.num_bytes / ceilings.copy_bytes
    cell = KernelCell(
        case=case,
        flops=case.flops,
        num_bytes=case.num_bytes,
        roofline_ms=roofline * 1e3,
        bound_by="arithmetic" if computes else "memory",
        error_bound=FP8_BOUND if case.codes == FP8_PRODUCTS else BOUNDS[case.dtype],
    )
    try:
        return _timed(cell, inputs(case, where.device, seed), where, ceilings, seed)
    except Exception as raised:  # noqa: BLE001 (whatever a device refuses ends a cell, not the run)
        return replace(cell, error=f"{type(raised).__name__}: {raised}"[:500])


def _timed(cell: KernelCell, given: Inputs, where: Place, ceilings: Ceilings, seed: int) -> KernelCell:
    case, launches = cell.case, partial(launch, plain=where.plain)
    with poisoned():
        out = launches(given, 0).sum(0)
        last = launches(given, len(given.sets) - 1).sum(0)
    worst = max(checked(out, given, 0, seed), checked(last, given, len(given.sets) - 1, seed + 1))
    batch = given.batch
    cell = replace(cell, tile_rows=batch.tile_rows, splits=batch.splits, num_sets=len(given.sets), relative_error=worst)
    if not worst <= cell.error_bound:
        return replace(cell, error=f"differs from float64 by {worst:.1e}, the bound is {cell.error_bound:g}")
    del out, last
    ms = where.clock.device(lambda index: launches(given, index % len(given.sets)))
    seconds = ms.median_ms / 1e3
    return replace(
        cell,
        ms=ms,
        tflops=case.flops / seconds / 1e12,
        gigabytes_per_s=case.num_bytes / seconds / 1e9,
        fraction=cell.roofline_ms / ms.median_ms,
        of_matmul=case.flops / seconds / ceilings.matmul_flops,
    )


def bars(cells: Sequence[KernelCell]) -> tuple[Bar, ...]:
    """The figure that is asked of target_attention."""
    rates = {
        cell.case.described: cell.of_matmul
        for cell in cells
        if cell.of_matmul is not None and cell.case.op == TARGET and _of_bar(cell.case)
    }
    worst = min(rates, key=lambda name: rates[name] or 0.0, default=None)
    name = "target_attention, n >= 4,096, m >= 1,024, d 128, bf16: worst share of the measured bf16 product"
    return (Bar.least(name, None if worst is None else rates[worst], MATMUL_BAR, worst or "-"),)


def page(result: KernelResult) -> Iterator[Part]:
    """For people."""
    yield headline(result.machine, result.commit)
    yield from (f"ceilings: {each.described}" for each in result.ceilings)
    columns = (
        *("op", "n", "m", "d", "batch", "dtype", "codes", "ms", "TFLOP/s", "GB/s", "of roofline", "by"),
        *("of product", "error", "splits"),
    )
    rows = [
        (
            *(cell.case.op, str(cell.case.n), str(cell.case.m), str(cell.case.head_dim), str(cell.case.batch)),
            *(cell.case.dtype, cell.case.codes, cell.error or as_ms(cell.ms), _number(cell.tflops, ".1f")),
            *(_number(cell.gigabytes_per_s, ".0f"), _number(cell.fraction, ".1%"), cell.bound_by),
            *(_number(cell.of_matmul, ".1%"), _number(cell.relative_error, ".1e"), str(cell.splits)),
        )
        for cell in result.cells
    ]
    yield Table("Attention kernels", columns, rows)
    others = [
        (
            *(cell.case.op, str(cell.case.n), str(cell.case.m), str(cell.case.head_dim), str(cell.case.batch)),
            *(cell.case.codes, each.name, as_ms(each.ms), _number(each.times_slower, ".2f"), each.skipped or "-"),
        )
        for cell in result.cells
        for each in cell.beside
    ]
    if others:
        beside = ("op", "n", "m", "d", "batch", "codes", "beside", "ms", "times ours", "skipped")
        yield Table("The same in torch", beside, others)
    yield bar_table(result.bars)
    if result.left:
        yield f"{result.left} cells were left out: the time was up"
    yield from (f"ERROR {text}" for text in result.errors)


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory holds NaN: what is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _beside(cell: KernelCell, where: Place, limit_gib: float, options: KernelOptions) -> Iterator[Beside]:
    given = inputs(cell.case, where.device, options.seed)
    assert cell.ms is not None
    for other in competitors(given, limit_gib, with_compile=options.with_compile):
        compute = other.compute
        if compute is None:
            yield Beside(other.name, None, other.skipped, None, None)
            continue
        try:
            error = checked(compute(0), given, 0, options.seed)
            ms = where.clock.device(lambda index, compute=compute: compute(index % len(given.sets)))  # type: ignore[misc]
        except torch.OutOfMemoryError as refused:
            yield Beside(other.name, None, f"out of memory: {refused}"[:300], None, None)
            continue
        yield Beside(other.name, ms, None, error, ms.median_ms / cell.ms.median_ms)


def _of_bar(case: Case) -> bool:
    shape = case.n >= 4096 and case.m >= 1024 and case.head_dim == 128
    return shape and case.dtype == "bfloat16" and case.codes == "none"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""`mfalcon bench kernels` and `mfalcon bench score --device`: Triton's kernels alone, and whole stacks of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from loadtest.report.table import as_text
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.errors import ConfigError


def bench_kernels(
    quick: Annotated[
        bool, typer.Option("--quick", help="Few tiny cells, also in Triton's interpreter (TRITON_INTERPRET=1).")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0, help="Time to spend on repeating each cell.")] = 0.1,
    budget: Annotated[float, typer.Option(min=0, help="Begin no cell later than this many seconds.")] = 1e9,
    gib: Annotated[float, typer.Option(min=0, help="Skip competitors whose scores need more memory.")] = 16.0,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Also torch.compile.")] = True,
    tune: Annotated[bool, typer.Option("--tune", help="Seek this device's block sizes instead.")] = False,
    tuned: Annotated[Path | None, typer.Option(help="Where --tune stores them; kernels/gpu/tuned.")] = None,
    json_output: JsonOption = False,
) -> None:
    """TFLOP/s, bytes/s and share of the measured roofline of the attention kernels, beside torch."""
    _require_triton()
    if tune:
        _tune(tuned, budget, quick=quick)
        return
    from loadtest.bench import kernels as bench  # noqa: PLC0415 (triton is an extra)

    options = bench.KernelOptions(seconds=seconds, budget_s=budget, limit_gib=gib, with_compile=compiled, quick=quick)
    result = bench.run(options, progress)
    show(result, bench.page, json_output)
    if result.errors:
        raise typer.Exit(1)


def score_on_device(
    device: str, stacks: Sequence[str], seconds: float | None, *, quick: bool, json_output: bool
) -> None:
    """What `mfalcon bench score --device` does. Raises ConfigError for a device that is not cuda."""
    if device != "cuda":
        raise ConfigError(f"--device: got {device!r}, must be cpu or cuda")
    _require_triton()
    from loadtest.bench import gpu_stacks  # noqa: PLC0415 (triton is an extra)

    options = gpu_stacks.StackOptions(tuple(stacks), quick=quick)
    if seconds is not None:
        options = gpu_stacks.StackOptions(tuple(stacks), seconds=seconds, quick=quick)
    result = gpu_stacks.run(options, progress)
    show(result, gpu_stacks.page, json_output)
    if result.broken:
        raise typer.Exit(1)


def _tune(folder: Path | None, budget: float, *, quick: bool) -> None:
    from loadtest.bench import gpu_tune  # noqa: PLC0415 (triton is an extra)

    found = gpu_tune.tune(folder, progress, budget, quick=quick)
    typer.echo(as_text([gpu_tune.table(found)]))


def _require_triton() -> None:
    """Raises ConfigError where it is not installed."""
    try:
        import triton  # noqa: F401, PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError("triton is not installed (pip install triton, or the extra: gpu)") from error

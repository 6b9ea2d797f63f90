"""`mfalcon verify`: the laws of M-FALCON, measured on a user's own checkpoint."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from kernels.cpu.build_library import POLICIES
from mfalcon.backends.choice import AUTO, FUSED, NAMES, ON_DEVICE, choose
from mfalcon.backends.select import KV_DTYPES, device_named, serve_any, use_device
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.laws import LawResult, check
from mfalcon.models import checkpoint
from mfalcon.models.base import EventRanker
from mfalcon.models.checkpoint import Checkpoint


class Dtype(StrEnum):
    """Types that a checkpoint can be verified in."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


_ALL = [Dtype.FLOAT64, Dtype.FLOAT32, Dtype.BFLOAT16]


def verify(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Types to verify in; all of them if not given.")] = None,
    device: Annotated[str, typer.Option(help="Device to verify on: cpu, cuda or cuda:N.")] = "cpu",
    backend: Annotated[str, typer.Option(help=f"What computes: {', '.join(NAMES)}.")] = AUTO,
    kv_dtype: Annotated[str, typer.Option(help=f"Type of the KV pages: {', '.join(KV_DTYPES)}.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the random requests.", min=0)] = 0,
    json_output: JsonOption = False,
) -> None:
    """Measure laws 1 to 7 on a checkpoint; exit code 1 if one is broken."""
    torch.set_num_threads(owned_cores())
    chosen = device_named(device, "--device")
    use_device(chosen)
    results: dict[str, list[LawResult]] = {}
    names: dict[str, str] = {}
    for kind in dtype or _computed_by(backend, kv_dtype, chosen):
        loaded = checkpoint.load(path, getattr(torch, kind.value), str(chosen))
        results[kind.value] = list(check(loaded, seed, backend, kv_dtype))
        names[kind.value] = _computer(loaded, backend, chosen)
    holds = all(result.holds for rows in results.values() for result in rows)
    if json_output:
        rows = [
            {
                "dtype": kind,
                "backend": names[kind],
                "law": r.law,
                "statement": r.statement,
                "worst": r.worst,
                "bound": r.bound,
                "holds": r.holds,
                "not_applicable": r.not_applicable,
            }
            for kind, laws in results.items()
            for r in laws
        ]
        print_json({"checkpoint": str(path), "device": device, "holds": holds, "laws": rows})
    else:
        Console(highlight=False).print(_table(f"{path} on {device}", results, names))
    if not holds:
        raise typer.Exit(1)


def _computer(loaded: Checkpoint, backend: str, device: torch.device) -> str:
    """The name of what computes."""
    if isinstance(loaded.model, EventRanker):
        return serve_any(loaded.model, backend).name
    return choose(backend, device, loaded.model.dtype).name


def _computed_by(backend: str, kv_dtype: str, device: torch.device) -> list[Dtype]:
    """Types to verify in if none is given: all, or those that the backend was made for."""
    if backend in POLICIES:
        return [Dtype(POLICIES[backend].element)]
    if backend in ON_DEVICE or (backend == AUTO and device.type == "cuda"):
        return [Dtype.FLOAT32, Dtype.BFLOAT16, Dtype.FLOAT16]
    return [Dtype.FLOAT32] if kv_dtype != "auto" or backend == FUSED else _ALL


def _table(title: str, results: dict[str, list[LawResult]], names: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("law", justify="right")
    table.add_column("statement")
    for name in ("dtype", "backend", "worst error", "bound", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, laws in results.items():
        for r in laws:
            if r.not_applicable:
                table.add_row(str(r.law), f"{r.statement} ({r.not_applicable})", kind, names[kind], "", "", "n/a")
                continue
            verdict = "[green]holds[/green]" if r.holds else "[red]BROKEN[/red]"
            table.add_row(str(r.law), r.statement, kind, names[kind], f"{r.worst:.1e}", f"{r.bound:.0e}", verdict)
        table.add_section()
    return table

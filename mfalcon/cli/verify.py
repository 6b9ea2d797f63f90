"""`mfalcon verify`: the laws of M-FALCON, measured on a user's own checkpoint."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from kernels.choice import AUTO, FUSED, NAMES, ONEDNN, choose
from kernels.cpu_build import POLICIES
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cores import owned_cores
from mfalcon.errors import ConfigError
from mfalcon.laws import LawResult, check
from mfalcon.models import checkpoint


class Dtype(StrEnum):
    """Types that a checkpoint can be verified in."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def verify(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.")],
    dtype: Annotated[list[Dtype] | None, typer.Option(help="Types to verify in; all of them if not given.")] = None,
    device: Annotated[str, typer.Option(help="Device to verify on: cpu, cuda or cuda:N.")] = "cpu",
    backend: Annotated[str, typer.Option(help=f"What computes: {', '.join(NAMES)}.")] = AUTO,
    int8: Annotated[bool, typer.Option("--int8", help="With KV pages of 8-bit codes (fused backends).")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random requests.", min=0)] = 0,
    json_output: JsonOption = False,
) -> None:
    """Measure laws 1 to 6 on a checkpoint; exit code 1 if one is broken."""
    torch.set_num_threads(owned_cores())
    _check_device(device)
    results: dict[str, list[LawResult]] = {}
    names: dict[str, str] = {}
    for kind in dtype or _computed_by(backend, int8=int8):
        loaded = checkpoint.load(path, getattr(torch, kind.value), device)
        results[kind.value] = list(check(loaded, seed, backend, int8=int8))
        names[kind.value] = choose(backend, torch.device(device), getattr(torch, kind.value)).name
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
            }
            for kind, laws in results.items()
            for r in laws
        ]
        print_json({"checkpoint": str(path), "device": device, "holds": holds, "laws": rows})
    else:
        Console(highlight=False).print(_table(f"{path} on {device}", results, names))
    if not holds:
        raise typer.Exit(1)


def _computed_by(backend: str, *, int8: bool) -> list[Dtype]:
    """Types to verify in if none is given: all, or those that the backend was made for."""
    if backend in POLICIES:
        return [Dtype(POLICIES[backend].element)]
    return [Dtype.FLOAT32] if int8 or backend in (FUSED, ONEDNN) else list(Dtype)


def _check_device(device: str) -> None:
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device: got {device!r}, must be cpu, cuda or cuda:N") from error
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device: got {device!r}, must be cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= found:
        raise ConfigError(f"--device: got {device!r}, but torch finds {found} CUDA devices here")


def _table(title: str, results: dict[str, list[LawResult]], names: dict[str, str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("law", justify="right")
    table.add_column("statement")
    for name in ("dtype", "backend", "worst error", "bound", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for kind, laws in results.items():
        for r in laws:
            verdict = "[green]holds[/green]" if r.holds else "[red]BROKEN[/red]"
            table.add_row(str(r.law), r.statement, kind, names[kind], f"{r.worst:.1e}", f"{r.bound:.0e}", verdict)
        table.add_section()
    return table

"""`mfalcon bench dlrm`: a generative ranker of so many times a DLRM's FLOPs, and which of the two is served faster."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench.dlrm import DLRMS
from loadtest.bench.dlrm_page import page
from loadtest.bench.dlrm_pairs import RANKERS
from loadtest.bench.dlrm_ratio import RatioOptions, run
from loadtest.bench.shapes import DTYPES
from loadtest.report.plot import plot_dlrm
from loadtest.report.table import as_markdown
from mfalcon.backends.choice import NAMES
from mfalcon.cli.bench_output import PlotOption, progress, result_file, show
from mfalcon.cli.output import JsonOption
from mfalcon.cores import owned_cores

_DEFAULTS = RatioOptions()
_MOST = 1 << 20
"""Candidates and rounds: beyond is a mistake."""


def bench_dlrm(
    ratio: Annotated[float, typer.Option(help="Of the ranker's FLOPs to the DLRM's.")] = _DEFAULTS.ratio,
    dlrm: Annotated[
        list[str] | None, typer.Option("--dlrm", help=f"DLRM to measure ({', '.join(DLRMS)}); repeat for more.")
    ] = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help=f"Ranker to measure ({', '.join(RANKERS)}); repeat for more.")
    ] = None,
    m: Annotated[
        list[int] | None, typer.Option("--m", min=1, max=_MOST, help="Number of candidates; repeatable.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=_MOST, help="How often each is timed, all in turns.")
    ] = _DEFAULTS.rounds,
    threads: Annotated[
        int, typer.Option(min=0, max=1_024, help="Torch threads; with one, CPU time is compared. 0 for all cores.")
    ] = 1,
    dtype: Annotated[str, typer.Option(help=f"What to compute in: {', '.join(DTYPES)}.")] = _DEFAULTS.dtype,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = _DEFAULTS.device,
    backend: Annotated[str, typer.Option(help=f"The ranker's: {', '.join(NAMES)}.")] = _DEFAULTS.backend,
    write: Annotated[
        Path | None, typer.Option(help="Also write the page here, as Markdown.", callback=result_file)
    ] = None,
    json_output: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """A DLRM beside a generative ranker of 285 times its FLOPs: rates, counted and measured."""
    options = RatioOptions(
        ratio=ratio,
        dlrms=tuple(dict.fromkeys(dlrm or _DEFAULTS.dlrms)),
        shapes=tuple(dict.fromkeys(shape or _DEFAULTS.shapes)),
        candidates=tuple(dict.fromkeys(m or _DEFAULTS.candidates)),
        rounds=rounds,
        dtype=dtype,
        device=device,
        backend=backend,
    )
    torch.set_num_threads(threads or owned_cores())
    result = run(options, progress)
    if plot is not None:
        plot_dlrm(result, plot)
    if write is not None:
        write.write_text(as_markdown(page(result)) + "\n", encoding="utf-8")
    show(result, page, json_output)
    if result.complaints:
        raise typer.Exit(1)

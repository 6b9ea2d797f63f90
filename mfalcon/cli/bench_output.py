"""How `mfalcon bench` prints: progress on standard error, a page for people or one JSON object for programs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from loadtest.report.result import as_json
from loadtest.report.table import Part, as_text
from mfalcon.errors import ConfigError


def result_file(path: Path | None) -> Path | None:
    """Callback of an option: ConfigError before the run, rather than after it, if the file has no folder to lie in."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    return path


def picture_file(path: Path | None) -> Path | None:
    """The same of a plot, and ModuleNotFoundError if there is nothing to draw it with."""
    if path is not None:
        import matplotlib  # noqa: F401, PLC0415 an optional dependency
    return result_file(path)


QuickOption = Annotated[bool, typer.Option("--quick", help="Few and short cells: about a minute.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="Torch threads; 0 for all cores of this process.")]
PlotOption = Annotated[
    Path | None, typer.Option(help="Also draw a PNG here (needs the extra: plot).", callback=picture_file)
]

Result = TypeVar("Result")


def progress(text: str) -> None:
    """What comes next."""
    Console(stderr=True, highlight=False, style="dim").print(text, markup=False)


def show(result: Result, page: Callable[[Result], Iterable[Part]], json_output: bool) -> None:
    """On standard output. Nothing is cut where the terminal is narrow."""
    typer.echo(as_json(result) if json_output else as_text(page(result)))

"""The one `mfalcon` command: a file beside this one per subcommand; our errors end as one line and exit code 1."""

import sys

import typer
from rich.console import Console

from mfalcon import __version__
from mfalcon.cli import (
    bench,
    chaos,
    data,
    demo,
    evaluate,
    inspect,
    load,
    loadtest,
    quality,
    rank,
    reload,
    replay,
    serve,
    soak,
    train,
    verify,
)
from mfalcon.cli.isolation import check_isolation
from mfalcon.errors import MFalconError

app = typer.Typer(
    name="mfalcon",
    help="An online ranking inference server for generative rankers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("inspect")(inspect.inspect)
app.command("verify")(verify.verify)
app.command("serve")(serve.serve)
app.command("reload")(reload.reload)
app.command("load")(load.load)
app.command("rank")(rank.rank)
app.command("replay")(replay.replay)
app.command("quality")(quality.quality)
app.command("demo")(demo.demo)
app.command("loadtest")(loadtest.loadtest)
app.command("soak")(soak.soak)
app.command("chaos")(chaos.chaos)
app.add_typer(bench.app, name="bench")


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True)) -> None:
    """An online ranking inference server for generative rankers."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `mfalcon` command."""
    try:
        check_isolation()
        app()
    except MFalconError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {_plain(str(error))}")
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name not in ("polars", "matplotlib", "locust"):
            raise
        extra = {"polars": "data", "matplotlib": "plot", "locust": "loadtest"}[error.name]
        Console(stderr=True).print(f"[red]error:[/red] this needs {error.name}: pip install -e '.\\[{extra}]'")
        sys.exit(1)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")

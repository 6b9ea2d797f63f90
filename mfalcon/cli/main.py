"""The one `mfalcon` command: a file beside this one per subcommand; our errors end as one line and exit code 1.

A subcommand's module is imported when it is called or completed, and by nothing else: most of them import torch.
"""

import sys
from importlib import import_module
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_group

from mfalcon import __version__
from mfalcon.cli.isolation import LEFT_OUT, check_isolation
from mfalcon.cli.once import OnceCommand
from mfalcon.cli.uncollected import uncollected
from mfalcon.errors import MFalconError

COMMANDS = {
    # name: its module and the line that the list of commands shows, the first of its own help. A module holds either
    # a function of the command's name or, for a command that has subcommands, a typer application `app`.
    "data": ("mfalcon.cli.data", "Fetch public data sets."),
    "train": (
        "mfalcon.cli.train",
        "Train a ranker and write a checkpoint. Ctrl-C keeps the last finished epoch: the same command resumes.",
    ),
    "plan": (
        "mfalcon.cli.plan",
        "Train a grid of short runs, fit a law of quality and one of latency, and say what to train for a budget.",
    ),
    "evaluate": (
        "mfalcon.cli.evaluate",
        "Quality of every task on the test events beside baselines, by slices, with intervals: AUC and more, or RMSE.",
    ),
    "new-model": (
        "mfalcon.cli.new_model",
        "Write a package with a ranker of your own: its entry point, a model, and tests of the laws.",
    ),
    "import": ("mfalcon.cli.import_model", "Make a checkpoint of another trainer's."),
    "merge": ("mfalcon.cli.merge", "Merge several rankers into one: weights, calibration and the TOML to serve them."),
    "inspect": ("mfalcon.cli.inspect", "Show a checkpoint's model and how much memory its users take."),
    "verify": ("mfalcon.cli.verify", "Measure laws 1 to 7 on a checkpoint; exit code 1 if one is broken."),
    "serve": ("mfalcon.cli.serve", "Serve a checkpoint over gRPC and HTTP until SIGTERM or Ctrl-C."),
    "reload": (
        "mfalcon.cli.reload",
        "Serve another checkpoint without a restart; a bad one leaves the old one serving.",
    ),
    "learn-items": (
        "mfalcon.cli.learn_items",
        "Learn vectors and biases of items from later events, all other weights as they are; items may be new.",
    ),
    "update-items": (
        "mfalcon.cli.update_items",
        "Change or add item rows while a model serves; all of a delta, or nothing.",
    ),
    "graph": (
        "mfalcon.cli.graph",
        "Make newer graph vectors of a checkpoint by newer events, for servers to read while they serve.",
    ),
    "load": (
        "mfalcon.cli.load",
        "Append the histories of a data set to a running server; run again, it goes on where it stopped.",
    ),
    "ingest": (
        "mfalcon.cli.ingest",
        "Send events to a running server, many users a call; with --progress each is written once, whatever crashes.",
    ),
    "ingest-kafka": (
        "mfalcon.cli.ingest_kafka",
        "Send the events of a topic to a running server until SIGTERM or Ctrl-C, each once; several may share it.",
    ),
    "log": ("mfalcon.cli.log", "Look at, check, copy, fill and move an event log in a file."),
    "token": ("mfalcon.cli.token", "Make tokens, and the tables of a server's tokens_file."),
    "rank": ("mfalcon.cli.rank", "Rank candidates for a user on a running server."),
    "interests": (
        "mfalcon.cli.interests",
        "Show a user's interests under conditions: the nearest items, and with --json the vectors.",
    ),
    "history": (
        "mfalcon.cli.history",
        "Show a user's events on a running server, the history's version, and where KV states of the user lie.",
    ),
    "delete": (
        "mfalcon.cli.delete",
        "Delete users: their histories and whatever was made of them; exit code 1 if one could not be deleted.",
    ),
    "replay": (
        "mfalcon.cli.replay",
        "Rank, then append, every test event on a fresh server; exit code 1 unless the scores equal the offline ones.",
    ),
    "quality": (
        "mfalcon.cli.quality",
        "Train every recipe with several seeds (split A), evaluate, merge, and hold the medians against their bars.",
    ),
    "demo": (
        "mfalcon.cli.demo",
        "Fetch MovieLens-100K, train two small rankers, serve them, rank a real user's candidates, and end.",
    ),
    "loadtest": (
        "mfalcon.cli.loadtest",
        "Load a running server and delete its users; exit code 1 if anything is wrong, lost or nothing answered.",
    ),
    "chaos": (
        "mfalcon.cli.chaos",
        "Kill and freeze Redis and replicas under load; exit code 1 on a wrong, lost, late or missing answer.",
    ),
    "bench": ("mfalcon.cli.bench", "Time the kernels and the service."),
}


EXTRAS = {
    "confluent_kafka": "kafka",
    "httpx": "loadtest",
    "locust": "loadtest",
    "matplotlib": "plot",
    "polars": "data",
    "sklearn": "quality",
}
"""Packages that a command may lack, and the extras that bring them."""


class LazyGroup(TyperGroup):
    """Lists placeholders, and puts the real command in the place of the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that `args` begin with. The context's class is not public in every version of typer."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest


def load_command(name: str) -> Any:
    """Import a subcommand's module and build the command."""
    with uncollected():
        module = import_module(COMMANDS[name][0])
    holder = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
    if hasattr(module, "app"):
        for command in module.app.registered_commands:
            command.cls = OnceCommand
        holder.add_typer(module.app, name=name)
    else:
        holder.command(name, cls=OnceCommand, **getattr(module, "PASSED_ON", {}))(
            getattr(module, name.replace("-", "_"))
        )
    return get_group(holder).commands[name]


def _placeholder() -> None:
    raise AssertionError("LazyGroup puts the real command in this place")


app = typer.Typer(
    name="mfalcon",
    cls=LazyGroup,
    help="An online ranking inference server for generative rankers.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for _name, (_module, _help) in COMMANDS.items():
    app.command(_name, help=_help)(_placeholder)


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
    except OSError as error:
        if error.filename is None or error.strerror is None:
            raise
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]error:[/red] {_plain(f'{error.filename}: {error.strerror}')}"
        )
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name == "mfalcon_client":  # it came into the checkout after the installation
            Console(stderr=True).print("[red]error:[/red] this needs a newer installation: pip install -e .")
            sys.exit(1)
        if error.name is not None and error.name.startswith(LEFT_OUT):
            Console(stderr=True).print(f"[red]error:[/red] this needs {error.name}, which is in a checkout alone")
            sys.exit(1)
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        Console(stderr=True).print(f"[red]error:[/red] this needs {error.name}: pip install -e '.\\[{extra}]'")
        sys.exit(1)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")

"""`mfalcon import`: a checkpoint of another trainer as one of ours."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from torch import Tensor

from mfalcon.cli.output import JsonOption, print_json
from mfalcon.importing.caged import Layout, read_caged
from mfalcon.importing.dlrm_v3 import imported
from mfalcon.importing.parity import Parity, checked_requests, parity
from mfalcon.importing.recsys_examples import RecsysSidecar, imported_recsys
from mfalcon.importing.recsys_parity import recsys_parity
from mfalcon.importing.sidecar import Sidecar, read_sidecar
from mfalcon.importing.stabilise import Moved, moved, stabilised
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import check_replaceable, save
from mfalcon.models.items import ItemTable

app = typer.Typer(help="Make a checkpoint of another trainer's.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Make a checkpoint of another trainer's."""


ConfigOption = Annotated[Path, typer.Option(help="TOML file of what the trainer's files do not say.")]
OutOption = Annotated[Path | None, typer.Option(help="Checkpoint to write; checkpoints/NAME if not given.")]
RequestsOption = Annotated[
    Path | None, typer.Option(help="JSON lines of requests and the trainer's own scores, to compare with.")
]
BoundOption = Annotated[float, typer.Option(help="Most that a score may differ from the trainer's.", min=0)]


@app.command("dlrm-v3")
def dlrm_v3(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with non_sparse.ckpt and sparse/, as the trainer wrote it.")
    ],
    config: ConfigOption,
    out: OutOption = None,
    requests: RequestsOption = None,
    bound: BoundOption = 1e-4,
    stabilise: Annotated[
        bool,
        typer.Option(help="Count positions and ages so that states outlive a request; scores change, it says by what."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Import a DLRM-v3 of Meta's generative-recommenders; exit code 1 if its scores are not the trainer's."""
    sidecar = read_sidecar(config, Sidecar)
    target = _target(out, sidecar.name)
    found = imported(_tensors("dlrm-v3", path, target), sidecar)
    compared = None if requests is None else parity(found, requests)
    model: Ranker = found.model
    change = None
    if stabilise:
        model = stable = stabilised(found, sidecar)
        change = moved(found, stable, None if requests is None else checked_requests(found, requests))
    _finish(_Written(target, model, found.items, compared, bound, change), json_output)


@app.command("recsys-examples")
def recsys_examples(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Folder with torch_module/ and dynamicemb_module/, as the trainer wrote it."
        ),
    ],
    config: ConfigOption,
    out: OutOption = None,
    requests: RequestsOption = None,
    bound: BoundOption = 1e-4,
    json_output: JsonOption = False,
) -> None:
    """Import an HSTU ranker of NVIDIA's recsys-examples; exit code 1 if its scores are not the trainer's."""
    sidecar = read_sidecar(config, RecsysSidecar)
    target = _target(out, sidecar.name)
    found = imported_recsys(_tensors("recsys-examples", path, target), sidecar)
    compared = None if requests is None else recsys_parity(found, requests)
    _finish(_Written(target, found.model, found.items, compared, bound), json_output)


def _target(out: Path | None, name: str) -> Path:
    """Where the checkpoint goes. Raises CheckpointError if something else is there."""
    target = out or Path("checkpoints") / name
    check_replaceable(target)
    return target


def _tensors(layout: Layout, path: Path, target: Path) -> dict[str, Tensor]:
    """Those of a trainer's files, read beside where the checkpoint goes: there is room. Raises CheckpointError."""
    beside = next(folder for folder in target.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=beside) as scratch:
        return read_caged(layout, path, Path(scratch))


@dataclass(frozen=True, slots=True)
class _Written:
    """A checkpoint to write, and what is to be said of it."""

    target: Path
    model: Ranker
    items: ItemTable
    compared: Parity | None
    bound: float
    change: Moved | None = None

    @property
    def is_the_trainers(self) -> bool:
        """Unless a score is too far off."""
        return self.compared is None or self.compared.worst <= self.bound


def _finish(made: _Written, json_output: bool) -> None:
    """Write it and say so. Raises Exit(1) if its scores are not the trainer's."""
    fingerprint = save(made.target, made.model, made.items)
    if json_output:
        report = {"bound": made.bound, "holds": made.is_the_trainers}
        print_json(
            {
                "checkpoint": str(made.target),
                "fingerprint": fingerprint,
                "prefix_stable": made.model.prefix_stable,
                "parity": None if made.compared is None else asdict(made.compared) | report,
                "stabilised": None if made.change is None else asdict(made.change),
            }
        )
    else:
        said = [*_said(made), _said_of_states(made.model, made.change)]
        Console(highlight=False, soft_wrap=True).print("\n".join(said), markup=False)
    if not made.is_the_trainers:
        raise typer.Exit(1)


def _said(made: _Written) -> list[str]:
    config, compared = made.model.config, made.compared
    tasks = ", ".join(task.name for task in config.tasks)
    lines = [f"{made.target}: {config.num_layers} layers, {config.num_items - 1:,} items, tasks {tasks}"]
    if compared is None:
        return [*lines, "Not compared with the trainer: --requests takes its own scores."]
    verdict = "the trainer's" if made.is_the_trainers else f"NOT the trainer's (bound {made.bound:g})"
    return [
        *lines,
        f"{compared.num_scores:,} scores of {compared.num_requests:,} requests are {verdict}: with the trainer's "
        f"lengths they differ by at most {compared.worst:.2g}, {compared.mean:.2g} on average.",
        f"As served, with attention_norm {config.stack[0].attention_norm:g} for every request: at most "
        f"{compared.served_worst:.2g}, {compared.served_mean:.2g} on average.",
    ]


def _said_of_states(model: Ranker, change: Moved | None) -> str:
    if not model.prefix_stable:
        return f"States do not outlive a request: {model.why_no_states}."
    if change is None:
        return "States outlive a request: keys and values depend on events alone."
    asked = f"{change.num_requests} {'made-up requests' if change.made_up else 'requests'}"
    return (
        "Stabilised: states outlive a request, features of the user are not read, and scores are not the trainer's. "
        f"On {asked} they move by at most {change.worst:.2g}, {change.mean:.2g} on average; {change.same_order:.1%} "
        "of the pairs of candidates keep their order."
    )

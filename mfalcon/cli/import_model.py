"""`mfalcon import`: a checkpoint of another trainer as one of ours."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mfalcon.cli.output import JsonOption, print_json
from mfalcon.importing.caged import read_caged
from mfalcon.importing.dlrm_v3 import Imported, imported
from mfalcon.importing.parity import Parity, checked_requests, parity
from mfalcon.importing.sidecar import read_sidecar
from mfalcon.importing.stabilise import Moved, moved, stabilised
from mfalcon.models.base import Ranker
from mfalcon.models.checkpoint import check_replaceable, save

app = typer.Typer(help="Make a checkpoint of another trainer's.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Make a checkpoint of another trainer's."""


@app.command("dlrm-v3")
def dlrm_v3(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder with non_sparse.ckpt and sparse/, as the trainer wrote it.")
    ],
    config: Annotated[Path, typer.Option(help="TOML file of what the trainer's files do not say.")],
    out: Annotated[Path | None, typer.Option(help="Checkpoint to write; checkpoints/NAME if not given.")] = None,
    requests: Annotated[
        Path | None, typer.Option(help="JSON lines of requests and the trainer's own scores, to compare with.")
    ] = None,
    bound: Annotated[float, typer.Option(help="Most that a score may differ from the trainer's.", min=0)] = 1e-4,
    stabilise: Annotated[
        bool,
        typer.Option(help="Count positions and ages so that states outlive a request; scores change, it says by what."),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Import a DLRM-v3 of Meta's generative-recommenders; exit code 1 if its scores are not the trainer's."""
    sidecar = read_sidecar(config)
    target = out or Path("checkpoints") / sidecar.name
    check_replaceable(target)
    beside = next(folder for folder in target.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=beside) as scratch:
        found = imported(read_caged("dlrm-v3", path, Path(scratch)), sidecar)
    compared = None if requests is None else parity(found, requests)
    model: Ranker = found.model
    change = None
    if stabilise:
        model = stable = stabilised(found, sidecar)
        change = moved(found, stable, None if requests is None else checked_requests(found, requests))
    fingerprint = save(target, model, found.items)
    if json_output:
        report = None if compared is None else asdict(compared) | {"bound": bound, "holds": compared.worst <= bound}
        written = {"checkpoint": str(target), "fingerprint": fingerprint, "prefix_stable": model.prefix_stable}
        print_json(written | {"parity": report, "stabilised": None if change is None else asdict(change)})
    else:
        said = [*_said(found, target, compared, bound), _said_of_states(found, change)]
        Console(highlight=False, soft_wrap=True).print("\n".join(said), markup=False)
    if compared is not None and compared.worst > bound:
        raise typer.Exit(1)


def _said_of_states(found: Imported, change: Moved | None) -> str:
    if change is None:
        return f"States do not outlive a request: {found.model.why_no_states}."
    asked = f"{change.num_requests} {'made-up requests' if change.made_up else 'requests'}"
    return (
        "Stabilised: states outlive a request, features of the user are not read, and scores are not the trainer's. "
        f"On {asked} they move by at most {change.worst:.2g}, {change.mean:.2g} on average; {change.same_order:.1%} "
        "of the pairs of candidates keep their order."
    )


def _said(found: Imported, target: Path, compared: Parity | None, bound: float) -> list[str]:
    config = found.model.config
    lines = [
        f"{target}: {config.num_layers} layers, {config.num_items - 1:,} items, tasks "
        + ", ".join(task.name for task in config.tasks),
    ]
    if compared is None:
        lines.append("Not compared with the trainer: --requests takes its own scores.")
    else:
        verdict = "the trainer's" if compared.worst <= bound else f"NOT the trainer's (bound {bound:g})"
        lines += [
            f"{compared.num_scores:,} scores of {compared.num_requests:,} requests are {verdict}: with the trainer's "
            f"lengths they differ by at most {compared.worst:.2g}, {compared.mean:.2g} on average.",
            f"As served, with attention_norm {found.model.lengths.attention_norm:g} for every request: at most "
            f"{compared.served_worst:.2g}, {compared.served_mean:.2g} on average.",
        ]
    return lines

"""`mfalcon bench lum`, `lum-features`: the time of a group of conditions, and what interests are worth to a head."""

from typing import Annotated

import torch
import typer

from loadtest.bench import lum_features
from loadtest.bench.lum import LumOptions, page, run
from loadtest.bench.lum_features import LumFeaturesOptions
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.datasets import DataOption, open_dataset
from mfalcon.cli.output import JsonOption

_DEFAULTS = LumOptions()
_FEATURES = LumFeaturesOptions()


def bench_lum(
    shape: Annotated[str, typer.Option(help="Shape of the model: S, B or tiny.")] = _DEFAULTS.shape,
    n: Annotated[int, typer.Option("--n", min=1, help="Events of the user.")] = _DEFAULTS.events,
    items: Annotated[list[int] | None, typer.Option(min=1, help="Items that are searched; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each cell is timed.")] = _DEFAULTS.rounds,
    json_output: JsonOption = False,
) -> None:
    """Time conditions on one KV state beside a prefill for each, and the search for items, on one thread."""
    options = LumOptions(shape, n, _DEFAULTS.groups, tuple(items or _DEFAULTS.items), rounds)
    show(run(options, progress), page, json_output)


def bench_lum_features(
    data: DataOption = "ml-100k",
    rows: Annotated[int, typer.Option(min=1, help="Labelled events of the head, about.")] = _FEATURES.rows,
    seeds: Annotated[int, typer.Option(min=1, help="Of the head.")] = _FEATURES.seeds,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    json_output: JsonOption = False,
) -> None:
    """Train a bare head without and with interests as features, with few labels and with all (minutes)."""
    torch.set_num_threads(threads)
    dataset = open_dataset(data, "", None, "", None)
    found = lum_features.run(dataset, LumFeaturesOptions(rows=rows, seeds=seeds), progress)
    show(found, lum_features.page, json_output)

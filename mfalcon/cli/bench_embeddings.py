"""`mfalcon bench embeddings`: vectors of every id from an array of any size, what they cost and how well they rank."""

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import embedding_quality, embeddings
from loadtest.bench.embedding_quality import EmbeddingQualityOptions
from loadtest.bench.embeddings import EmbeddingOptions
from loadtest.report.table import as_markdown
from mfalcon.cli.bench_output import progress, result_file, show
from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.output import JsonOption

_DEFAULTS, _QUALITY = EmbeddingOptions(), EmbeddingQualityOptions()


def bench_embeddings(
    ids: Annotated[int, typer.Option(min=1, help="Of the virtual table.")] = _DEFAULTS.ids,
    dim: Annotated[int, typer.Option(min=1, help="Width of a vector.")] = _DEFAULTS.dim,
    memory_mb: Annotated[float, typer.Option(help="Of the array.")] = _DEFAULTS.memory_mb,
    block: Annotated[int, typer.Option(min=1, help="Numbers of a vector that lie side by side.")] = _DEFAULTS.block,
    rounds: Annotated[int, typer.Option(min=1, help="How often each lookup is timed.")] = _DEFAULTS.rounds,
    quality: Annotated[
        bool, typer.Option("--quality", help="Instead: train on MovieLens-100K at several sizes, and compare.")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Of --quality: trainings of each.")] = _QUALITY.seeds,
    processes: Annotated[int, typer.Option(min=1, help="Of --quality: trainings side by side.")] = 1,
    runs: Annotated[
        Path, typer.Option(help="Of --quality: where checkpoints are kept; those that are there are not trained again.")
    ] = Path("build/embedding-quality"),
    write: Annotated[
        Path | None,
        typer.Option(help="Of --quality: also write the page here, as Markdown.", callback=result_file),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Measure a virtual table of billions of parameters on some megabytes; or how well such tables rank."""
    if quality:
        options = EmbeddingQualityOptions(seeds=seeds, processes=processes)
        dataset = open_dataset("ml-100k", "", None, "", None)
        found = embedding_quality.run(dataset, options, runs, progress)
        if write is not None:
            write.write_text(as_markdown(embedding_quality.page(found)) + "\n", encoding="utf-8")
        show(found, embedding_quality.page, json_output)
        return
    speed = EmbeddingOptions(ids=ids, dim=dim, memory_mb=memory_mb, block=block, rounds=rounds)
    show(embeddings.run(speed, progress), embeddings.page, json_output)

"""`mfalcon bench rerank`: the time of the stage behind the scores."""

from typing import Annotated

import typer

from loadtest.bench.rerank import RerankOptions, page, run
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption

_DEFAULTS = RerankOptions()


def bench_rerank(
    m: Annotated[list[int] | None, typer.Option("--m", min=1, help="Candidates to rerank; repeatable.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", min=1, help="Places of the top; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each cell is timed.")] = _DEFAULTS.rounds,
    json_output: JsonOption = False,
) -> None:
    """Time a diverse top by each method: likeness, relevance and picks."""
    candidates, places = tuple(m or _DEFAULTS.candidates), tuple(k or _DEFAULTS.places)
    show(run(RerankOptions(candidates, places, rounds=rounds), progress), page, json_output)

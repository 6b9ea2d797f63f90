"""What a diverse top costs: the whole stage of one request, on one thread, beside nothing else."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread, always, spread, take_turns
from mfalcon.models.items import ItemTable
from mfalcon.rerank.likeness import Centred, Likeness
from mfalcon.rerank.order import METHODS, reranked
from mfalcon.types import Rerank

_NUM_ITEMS, _NUM_TAGS = 20_000, 18
_BAR_MS, _BAR_AT = 4.0, (1_000, 50)


@dataclass(frozen=True, slots=True)
class RerankOptions:
    """candidates: reranked, all of those that were scored. places: of the top. rounds: how often each is timed."""

    candidates: tuple[int, ...] = (200, 1_000)
    places: tuple[int, ...] = (10, 50)
    dim: int = 64
    strength: float = 0.25
    rounds: int = 200


@dataclass(frozen=True, slots=True)
class RerankCell:
    """Of one method: the likeness among the candidates, their relevance and the picks."""

    method: str
    candidates: int
    places: int
    took: Spread


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Everything that `mfalcon bench rerank` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: RerankOptions
    cells: tuple[RerankCell, ...]
    bars: tuple[Bar, ...]


def run(options: RerankOptions, progress: Callable[[str], None]) -> RerankResult:
    """Time every cell in turns, on random scores, tags and vectors."""
    rng = np.random.default_rng(0)
    tags = (rng.random((_NUM_ITEMS, _NUM_TAGS)) < 0.1).astype(np.uint8)
    items = ItemTable(np.arange(1, _NUM_ITEMS + 1), ("",) * _NUM_ITEMS, {"tags": tags})
    vectors = rng.standard_normal((_NUM_ITEMS + 1, options.dim)).astype(np.float32)
    likeness = Likeness(items, Centred(vectors.__getitem__, len(vectors)))
    actions = {}
    for num_candidates in options.candidates:
        rows, p = rng.integers(1, _NUM_ITEMS + 1, num_candidates), rng.random(num_candidates, dtype=np.float32)

        def rank(method: str, places: int, rows: np.ndarray = rows, p: np.ndarray = p) -> None:
            wish = Rerank(method, options.strength, len(rows))
            by_method = likeness.by(method)
            reranked(p, p, places, wish, lambda positions: by_method.among(rows[positions]))

        for places in options.places:
            for method in METHODS:
                actions[method, num_candidates, places] = always(partial(rank, method, places))
    progress(f"{len(actions)} cells, {options.rounds} rounds")
    for prepare in actions.values():
        prepare()()
    samples = take_turns(actions, 0, options.rounds, options.rounds)
    cells = tuple(RerankCell(*name, spread(of.quiet)) for name, of in samples.items())
    at = [cell for cell in cells if (cell.candidates, cell.places) == _BAR_AT]
    name = "{} of 1,000 candidates, 50 places: median ms".format
    bars = tuple(Bar.most(name(cell.method), cell.took.median_ms, _BAR_MS) for cell in at)
    return RerankResult("rerank", this_machine(), commit(), options, cells, bars)


def page(result: RerankResult) -> Iterator[Part]:
    """What was measured where, the cells and the bars."""
    yield headline(result.machine, result.commit)
    options = result.options
    title = f"Reranking on one thread, {options.dim} learned numbers and {_NUM_TAGS} tags an item: ms, median (min-max)"
    rows = [(c.method, f"{c.candidates:,}", str(c.places), as_ms(c.took)) for c in result.cells]
    yield Table(f"{title} of {options.rounds}", ("method", "candidates", "places", "ms"), rows)
    yield bar_table(result.bars)

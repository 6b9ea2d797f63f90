"""What a large user model costs: a group of conditions on one state beside a prefill for each, and the items nearest to
them. Competitors take turns, on one thread.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from loadtest.bench.shapes import REQUEST_TIME_MS, random_events, ranker_config, shape_named
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread, spread
from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import serve
from mfalcon.engine.nearest import ExactSearch
from mfalcon.models.base import Targets
from mfalcon.models.config import RankerConfig
from mfalcon.models.lum import LUM
from mfalcon.models.registry import build

_GROUP = 64
_MOST_MS = 8.0
_LEAST_TIMES = 100.0
_MICROBATCH = 64
_TOP = 100


@dataclass(frozen=True, slots=True)
class LumOptions:
    """shape: of the model. events: of the user. groups: conditions of a request. items: that are searched. rounds: how
    often each is timed, in turns.
    """

    shape: str = "S"
    events: int = 1_024
    groups: tuple[int, ...] = (1, 8, _GROUP, 256)
    items: tuple[int, ...] = (10_000, 100_000)
    rounds: int = 30


@dataclass(frozen=True, slots=True)
class LumCell:
    """One thing that was timed. conditions: how many at once."""

    what: str
    conditions: int
    took: Spread


@dataclass(frozen=True, slots=True)
class LumResult:
    """Everything that `mfalcon bench lum` knows. backend: what computed."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: LumOptions
    backend: str
    cells: tuple[LumCell, ...]
    bars: tuple[Bar, ...]


def run(options: LumOptions, progress: Callable[[str], None]) -> LumResult:
    """Time everything in turns. The bars: 64 conditions within 8 ms, and at least 100 times cheaper than a prefill for
    each of them.
    """
    torch.set_num_threads(1)
    model = lum_of(options.shape)
    served, events = serve(model), random_events(options.events, 0)
    nothing = torch.empty(0, dtype=torch.int64)
    groups = sorted({*options.groups, _GROUP})
    rng = torch.Generator().manual_seed(0)
    state = prefill(served, events)
    timed: dict[tuple[str, int], Callable[[], object]] = {("prefill", 0): lambda: prefill(served, events)}
    for size in groups:
        asked = Targets(torch.randint(0, model.num_target_rows, (size,), generator=rng), nothing)
        timed["conditions", size] = partial(score, served, state, asked, REQUEST_TIME_MS, _MICROBATCH)
    for num in options.items:
        search = ExactSearch(
            torch.randn(num + 1, model.config.dim, generator=rng),
            torch.randn(num + 1, generator=rng),
            torch.ones(1, num + 1, dtype=torch.bool),
        )
        interests = torch.randn(_GROUP, model.config.dim, generator=rng)
        timed[f"nearest {_TOP} of {num:,} items", _GROUP] = partial(search.best, interests, [0] * _GROUP, _TOP)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in timed}
    progress(f"{len(timed)} cells, {options.rounds} rounds")
    with torch.inference_mode():
        for turn in range(options.rounds + 3):
            for key, work in timed.items():
                began = time.perf_counter()
                work()
                took = time.perf_counter() - began
                if turn >= 3:
                    seconds[key].append(took)
    whole = np.array(seconds["prefill", 0])
    group = np.array(seconds["conditions", _GROUP])
    group_ms = 1e3 * float(np.median(group))
    times = float(np.median(_GROUP * whole / group))
    bars = (
        Bar.most(f"{_GROUP} conditions on {options.shape}, {options.events:,} events: ms", group_ms, _MOST_MS),
        Bar.least(f"{_GROUP} conditions: times cheaper than a prefill for each", times, _LEAST_TIMES),
    )
    cells = tuple(LumCell(*key, spread(taken)) for key, taken in seconds.items())
    return LumResult("lum", this_machine(), commit(), options, served.name, cells, bars)


def lum_of(shape: str) -> LUM:
    """A large user model of a shape with 64 conditions and random weights."""
    side = {"name": "genre", "kind": "category", "vocabulary": [f"genre_{index}" for index in range(_GROUP // 2 - 1)]}
    changes = {"architecture": "lum", "lum": {"task": "like", "category": "genre"}, "side_features": [side]}
    no_more: dict[str, object] = {"context_features": [], "dense_features": []}
    config = RankerConfig.model_validate(ranker_config(shape_named(shape)).model_dump() | changes | no_more)
    torch.manual_seed(0)
    model = build(config).eval().requires_grad_(False)
    assert isinstance(model, LUM)
    return model


def page(result: LumResult) -> Iterator[Part]:
    """What was measured where, the cells and the bars."""
    yield headline(result.machine, result.commit)
    options = result.options
    title = (
        f"{options.shape}, {options.events:,} events, {result.backend}, one thread: "
        f"ms, median (min-max) of {options.rounds}, in turns"
    )
    rows = [(c.what, str(c.conditions or ""), as_ms(c.took)) for c in result.cells]
    yield Table(title, ("what", "conditions", "ms"), rows)
    yield bar_table(result.bars)

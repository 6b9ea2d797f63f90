"""What vectors of an open vocabulary cost: memory, rows a second, and time of a request, beside plain tables."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu import check
from kernels.cpu.shared_table import FusedLookup
from kernels.shared_table import HASHES, SharedTable, lookup
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar, as_ms, bar_table, headline
from loadtest.report.table import Part, Table
from loadtest.report.timing import Spread, always, spread, take_turns
from mfalcon.errors import ConfigError
from mfalcon.models.config_features import EmbeddingConfig
from mfalcon.models.embedding import ItemEmbedding

_MOST_GROWN_MB, _LEAST_ROWS_S, _MOST_ADDED_MS = 30.0, 5e6, 0.3
_BAR_ROWS, _RANKED = 10_000, 1_000
_SETTLED_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """ids x dim: the virtual table. memory_mb, block: of the array. rows: of one lookup. plain_rows: of the plain table
    beside it. rounds: how often each lookup is timed.
    """

    ids: int = 195_312_500
    dim: int = 128
    memory_mb: float = 10.0
    block: int = 32
    rows: tuple[int, ...] = (1_000, 10_000, 200_000)
    plain_rows: int = 500_000
    rounds: int = 40


@dataclass(frozen=True, slots=True)
class EmbeddingCell:
    """Of one way to find so many rows of random ids, on one thread."""

    way: str
    rows: int
    took: Spread
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Everything that `mfalcon bench embeddings` knows. grown_mb: what this process grew by, 10^6 bytes, from before
    there was an array to when it had found `_BAR_ROWS` rows. added_ms: by the vectors of a request of `_RANKED`
    candidates beside those of a table of `_SETTLED_ROWS` items: median.
    """

    benchmark: str
    machine: Machine
    commit: str | None
    options: EmbeddingOptions
    kernel: str
    virtual_parameters: int
    compression: float
    grown_mb: float
    added_ms: float
    cells: tuple[EmbeddingCell, ...]
    bars: tuple[Bar, ...]


def run(options: EmbeddingOptions, progress: Callable[[str], None]) -> EmbeddingResult:
    """Find rows in turns, on one thread. Raises ConfigError for a table that cannot be, FusedUnavailable without a
    kernel.
    """
    config = EmbeddingConfig(kind="robe-mix", memory_mb=options.memory_mb, block=options.block)
    if not options.block <= options.dim:
        raise ConfigError(f"block: got {options.block}, must be at most the width, {options.dim}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(options, config, progress)
    finally:
        torch.set_num_threads(threads)


def _run(options: EmbeddingOptions, config: EmbeddingConfig, progress: Callable[[str], None]) -> EmbeddingResult:
    fused = FusedLookup(check.load())
    generator = torch.Generator().manual_seed(0)
    keys = {num: torch.randint(0, options.ids, (num,), generator=generator) for num in options.rows}
    of_bar = torch.randint(0, options.ids, (_BAR_ROWS,), generator=generator)
    torch.empty(1).normal_()
    with torch.inference_mode():
        before = _resident_bytes()
        items = ItemEmbedding(1, options.dim, (), config).requires_grad_(False)
        items.settle(fused)
        items(of_bar)
        grown = (_resident_bytes() - before) / 1e6
        progress(f"the array and {_BAR_ROWS:,} rows took {grown:.1f} MB")
        cells = _cells(options, items.id.weight, fused, keys, progress)
        added = _added_ms(options, items, of_bar[:_RANKED], progress)
    of_mix = [c.rows_per_second for c in cells if c.rows == _BAR_ROWS and c.way == "robe-mix, fused"]
    bars = (
        Bar.most("memory of the process grows by MB", grown, _MOST_GROWN_MB),
        Bar.least(f"robe-mix, {_BAR_ROWS:,} rows: rows a second", of_mix[0] if of_mix else None, _LEAST_ROWS_S),
        Bar.most(f"a request of {_RANKED:,} candidates: ms more than of a table", added, _MOST_ADDED_MS),
    )
    virtual = options.ids * options.dim
    return EmbeddingResult(
        benchmark="embeddings",
        machine=this_machine(),
        commit=commit(),
        options=options,
        kernel=fused.kernel.policy.name,
        virtual_parameters=virtual,
        compression=virtual / config.num_numbers,
        grown_mb=grown,
        added_ms=added,
        cells=tuple(cells),
        bars=bars,
    )


def _cells(
    options: EmbeddingOptions,
    memory: Tensor,
    fused: FusedLookup,
    keys: dict[int, Tensor],
    progress: Callable[[str], None],
) -> list[EmbeddingCell]:
    plain = torch.randn(options.plain_rows, options.dim)
    ways: dict[tuple[str, int], Callable[[], object]] = {}
    for num, asked in keys.items():
        for name in HASHES:
            table = SharedTable(name, len(memory), options.dim, options.block)
            if not torch.equal(fused(memory, table, asked), lookup(memory, table, asked)):
                raise AssertionError(f"{name}: the fused kernel finds other rows than the definition")
            ways[f"{name}, fused", num] = partial(fused, memory, table, asked)
            ways[f"{name}, definition", num] = partial(lookup, memory, table, asked)
        ways[f"plain table of {plain.nbytes / 1e6:,.0f} MB", num] = partial(
            functional.embedding, asked % options.plain_rows, plain
        )
    progress(f"{len(ways)} lookups, {options.rounds} rounds")
    for find in ways.values():
        find()
    samples = take_turns({name: always(find) for name, find in ways.items()}, 0, options.rounds, options.rounds)
    took = {name: spread(of.quiet) for name, of in samples.items()}
    return [EmbeddingCell(*name, of, name[1] / (of.median_ms / 1e3)) for name, of in took.items()]


def _added_ms(options: EmbeddingOptions, items: ItemEmbedding, keys: Tensor, progress: Callable[[str], None]) -> float:
    progress(f"the vectors of {len(keys):,} candidates, beside a table of {_SETTLED_ROWS:,} items")
    table = ItemEmbedding(_SETTLED_ROWS, options.dim, ()).requires_grad_(False)
    table.settle()
    rows = keys % _SETTLED_ROWS
    actions = {"shared": always(partial(items, keys)), "table": always(partial(table, rows))}
    samples = take_turns(actions, 0, 10 * options.rounds, 10 * options.rounds)
    return spread(samples["shared"].quiet).median_ms - spread(samples["table"].quiet).median_ms


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def page(result: EmbeddingResult) -> Iterator[Part]:
    """What was measured where, the lookups and the bars."""
    yield headline(result.machine, result.commit)
    options = result.options
    yield (
        f"A virtual table of {options.ids:,} x {options.dim} = {result.virtual_parameters / 1e9:.1f} G parameters "
        f"({4 * result.virtual_parameters / 1e9:,.0f} GB in float32) on {options.memory_mb:g} MB in blocks of "
        f"{options.block}: {result.compression:,.0f} to 1. Kernel {result.kernel}; each fused lookup was compared with "
        "the definition, bit by bit."
    )
    title = f"Rows of random ids on one thread: ms, median (min-max) of {options.rounds}"
    rows = [(c.way, f"{c.rows:,}", as_ms(c.took), f"{c.rows_per_second / 1e6:.1f}") for c in result.cells]
    yield Table(title, ("way", "rows", "ms", "M rows/s"), rows)
    yield bar_table(result.bars)

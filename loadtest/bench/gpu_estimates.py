"""What the headline cells of a run on a device should come to on an H100, by counting, and what they came to.

`python -m loadtest.bench.gpu_estimates [RECORD ...]` prints the tables of docs/gpu.md; of records of `gpu_all` and
`gpu_checks` it takes the last measurement of each cell.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from kernels.gpu import configs
from kernels.gpu.launch import tile_rows_for
from kernels.gpu.splits import splits_on
from loadtest.bench.gpu_cases import TARGET, Case
from loadtest.bench.gpu_engine_sizes import REAL
from loadtest.bench.gpu_pretend import H100, LAUNCH_US
from loadtest.bench.gpu_record import CELL, read
from loadtest.bench.gpu_stacks import ENCODE, REQUEST, SCORE
from loadtest.bench.gpu_steps import ASSUMED, BATCH, CASES, EIGHT, LONG
from loadtest.bench.gpu_worlds import DLRM_V3, Least, Scenario, StackSpec, encode_work, score_work
from loadtest.report.table import Part, Table, as_markdown
from mfalcon.backends.base import DEVICE_MICROBATCH

_REPLAY_US = 30.0
"""Of the host: a replay, with the copies into its buffers."""
_CALL_US = 505.0
"""Of client and server together for a call that is refused unread, on one core of the machine of docs/LOG.md."""
_BUS = 50e9
"""Bytes a second from pinned memory, of PCI Express 5."""
_HZ, _MULTIPLY, _SILUS, _OTHERS = 1.755e9, 4_096, 16, 32
"""Of a multiprocessor: cycles a second; FLOP of bfloat16, SiLUs, and what else a weight takes, in a cycle."""
_BALANCE = 0.85
"""Share of the time in which all multiprocessors have tiles of a prefill."""
NONE_YET = "-"


@dataclass(frozen=True, slots=True)
class _Stack:
    """A cell of `gpu_stacks`. replays: of graphs, None where every kernel is launched."""

    scenario: Scenario
    path: str
    cached: int
    microbatch: int | None
    graph: bool

    @property
    def name(self) -> str:
        users, m = len(self.scenario.lens), self.scenario.m
        of = f"{users} users, n={self.scenario.lens[0]:,}" if users > 1 else f"n={self.scenario.lens[0]:,}"
        match self.path:
            case "encode":
                what = "encode"
            case "score":
                what = f"m={m:,}, cached: score"
            case _:
                what = f"m={m:,}, " + (f"{self.cached:,} cached" if self.cached else "uncached") + ": encode and score"
        how = "" if self.microbatch is None else f", microbatch {self.microbatch:,}"
        return f"{self.scenario.spec.name}, {of}, {what}{how}"

    def row(self, cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        spec, lens, m = self.scenario.spec, self.scenario.lens, self.scenario.m
        least, launches, replays = Least(0, 0), 0, 0
        if self.path != SCORE:
            least += encode_work(spec, lens, self.cached)
            launches += _encode_launches(spec)
        if self.path != ENCODE:
            least += score_work(spec, lens, m)
            parts = ceil(self.scenario.num_targets / (self.microbatch or self.scenario.num_targets))
            replays, launches = (parts, launches) if self.graph else (0, launches + parts * _score_launches(spec))
        wanted = {"stack": spec.name, "scenario": self.scenario.name, "path": self.path, "graph": self.graph}
        if self.path != SCORE:
            wanted["cached"] = self.cached
        if self.microbatch is not None:
            wanted["microbatch"] = self.microbatch
        found = [cell for cell in cells if wanted.items() <= cell.items() and cell["device_ms"]]
        measured = f"{found[-1]['device_ms']['median_ms']:.3g}" if found else NONE_YET
        return (self.name, *_counted(least, launches, replays), measured)


@dataclass(frozen=True, slots=True)
class _Rank:
    """A cell of `gpu_engine` or `gpu_grpc`. host_us: beside launches and replays. bus_bytes: from the host's memory."""

    name: str
    said: str
    least: Least
    launches: int
    replays: int
    bus_bytes: int = 0
    host_us: float = 0.0

    def row(self, cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
        found = [cell for cell in cells if cell.get("name") == self.name and cell.get("p50_ms")]
        measured = f"{found[-1]['p50_ms']:.3g} ({found[-1]['per_second']:,.0f}/s)" if found else NONE_YET
        flop, mb, launches, host, floor = _counted(self.least, self.launches, self.replays, self.host_us)
        floor_ms = max(float(floor), self.bus_bytes / _BUS * 1e3)
        return (self.said, flop, mb, launches, host, f"{floor_ms:.2g}", measured)


def stacks() -> list[_Stack]:
    """Those of the bars, and of NVIDIA's block the first and the last step of its sweep."""
    most, *_ = BATCH.microbatches
    return [
        _Stack(BATCH, ENCODE, 0, None, False),
        *(_Stack(BATCH, SCORE, 0, microbatch, graph) for microbatch in BATCH.microbatches for graph in (False, True)),
        _Stack(BATCH, REQUEST, 0, most, True),
        _Stack(LONG[0], ENCODE, 0, None, False),
        *(_Stack(one, path, 0, one.m, True) for one in LONG for path in (SCORE, REQUEST)),
        *(_Stack(one, REQUEST, cached, one.num_targets, True) for one in EIGHT for cached in (0, one.cached[-1])),
    ]


def ranks() -> list[_Rank]:
    """Those of the engine, of its sizes; embeddings and heads are left out, and what Python and torch take."""
    n, short, m, many = REAL.long, REAL.short, REAL.m, REAL.many
    cached, all_users = score_work(DLRM_V3, (n,), m), score_work(DLRM_V3, (short,) * many, m)
    appended = encode_work(DLRM_V3, (n + 16,), n) + score_work(DLRM_V3, (n + 16,), m)
    state = n * DLRM_V3.num_layers * 2 * DLRM_V3.width * 2
    replays = ceil(many * m / DEVICE_MICROBATCH)
    return [
        _Rank("cached", f"rank, n={n:,}, m={m}, cached", cached, 0, 1),
        _Rank("16 new events", f"rank, n={n:,}, m={m}, 16 new events", appended, 0, 2),
        _Rank(
            "from the host",
            f"rank, n={n:,}, m={m}, {state / 1e6:.0f} MB from the host",
            cached,
            DLRM_V3.num_layers + _score_launches(DLRM_V3),
            0,
            state,
        ),
        _Rank("at once", f"{many} ranks at once, n={short:,}, m={m}, cached", all_users, 0, replays),
        _Rank("through gRPC", f"{many} clients through gRPC, the same", all_users, 0, replays, 0, many * _CALL_US),
    ]


def attention(case: Case, cells: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """A row. Cells of the step `hopper` have both kernels; those of `kernels` what a stack would take."""
    rows = tile_rows_for(case.m, 2, case.head_dim)
    tiles = ceil(case.m / rows) * case.num_heads
    splits = splits_on(H100, case.op, tiles, case.n, 2, case.head_dim, rows)
    keys = configs.attention(case.op, H100, 2, case.head_dim, rows).block_n
    products = 4 * rows * keys * case.head_dim / _MULTIPLY
    cycles = products + rows * keys / _SILUS + rows * keys / _OTHERS
    if case.op == TARGET:
        each = ceil(ceil(case.n / keys) / splits)
        blocks = float(ceil(tiles * splits / H100.num_sms) * each)
        counted = str(each)
    else:
        whole = sum(ceil(min(first + rows, case.n) / keys) for first in range(0, case.n, rows)) * case.num_heads
        blocks = whole / H100.num_sms / _BALANCE
        counted = f"{whole / tiles / splits:.0f} on average"
    by_wait, by_products = (blocks * of_a_tile / _HZ * 1e6 for of_a_tile in (cycles, products))
    name = f"{case.op.partition('_')[0]}, n={case.n:,}, m={case.m:,}, d={case.head_dim}, splits {splits}"
    found = [cell for cell in cells if cell.get("case") == _fields(case)]
    measured = [
        next((f"{cell[which]['median_ms'] * 1e3:.0f}" for cell in found[::-1] if cell.get(which)), NONE_YET)
        for which in ("plain_ms", "hopper_ms")
    ]
    tflops = f"{case.flops / by_wait / 1e6:.0f} to {case.flops / by_products / 1e6:.0f}"
    sizes = (f"{case.flops / 1e9:.1f}", f"{case.num_bytes / 1e6:.0f}", str(tiles * splits), counted, f"{cycles:,.0f}")
    return (name, *sizes, f"{by_wait:.0f}", f"{by_products:.0f}", tflops, *measured)


def page(records: Sequence[Path]) -> Iterator[Part]:
    """The tables; headings stand around them."""
    cells = [cell for record in records for cell in read(record, CELL)]
    counted = ("GFLOP", "MB", "launches", "host, us", "floor, ms")
    yield Table("", ("stack, bfloat16", *counted, "measured, ms"), [one.row(cells) for one in stacks()])
    yield Table("", ("engine", *counted, "measured p50, ms"), [one.row(cells) for one in ranks()])
    columns = (
        *("attention, 4 heads", "GFLOP", "MB", "programs", "tiles of each", "cycles of a tile", "estimate, us"),
        *("if they overlap, us", "TFLOP/s", "plain, measured us", "Hopper, measured us"),
    )
    yield Table("", columns, [attention(case, cells) for case in CASES])


def _counted(least: Least, launches: int, replays: int, host_us: float = 0.0) -> tuple[str, ...]:
    parts = [*([str(launches)] if launches or not replays else []), *([_times(replays)] if replays else [])]
    host = LAUNCH_US * launches + _REPLAY_US * replays + host_us
    floor = ASSUMED.seconds(least.flops, least.num_bytes) * 1e3
    flop, mb = least.flops / 1e9, least.num_bytes / 1e6
    return (
        f"{flop:,.3g}" if flop < 100 else f"{flop:,.0f}",
        f"{mb:,.0f}",
        " + ".join(parts),
        f"{host:,.0f}",
        f"{floor:.2g}",
    )


def _times(replays: int) -> str:
    return "1 replay" if replays == 1 else f"{replays} replays"


def _encode_launches(spec: StackSpec) -> int:
    """Norm, projection, keys and values, attention, norm and gate, projection; the last layer ends with its keys."""
    return 6 * spec.num_layers - 3


def _score_launches(spec: StackSpec) -> int:
    """The same, without keys and values: no bias here."""
    return 5 * spec.num_layers


def _fields(case: Case) -> dict[str, Any]:
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


if __name__ == "__main__":
    print(as_markdown(page([Path(name) for name in sys.argv[1:]])))

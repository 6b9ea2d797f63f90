"""A DLRM and a generative ranker of many times its FLOPs as two models of one `mfalcon serve`, over gRPC.

The highest rate of an open loop within a p99; and the p99 of each at the DLRM's highest rate, as ByteDance states the
claim of OneTrans: a p99 that is no higher, at about 140 times the FLOPs.
"""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.bench.dlrm import dlrm_checkpoint, dlrm_named
from loadtest.bench.dlrm_pairs import RANKERS, Pair, pairs_of
from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.faults.fleet import end, guarded
from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.load_result import ClassReport, LoadResult
from loadtest.load.open_loop import LoadOptions, load
from loadtest.load.traffic import Traffic, traffic_of
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import as_number, headline
from loadtest.report.table import Part, Table
from mfalcon.errors import EngineFailure
from mfalcon.models import checkpoint as checkpoints
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Ids

DLRM, RANKER = "dlrm", "ranker"
"""Names of the two models in the server."""
ONE_TRANS = 140
"""Times the FLOPs at which OneTrans had a p99 no higher than that of DCNv2 and DIN."""
NOTES = (
    "both are models of one server process, asked one after the other; the clients are on the same cores",
    "rate: requests a second, at the times of a Poisson process, all of them answered rightly, with a p99 within the "
    "bound; the next rate that was tried is at most 5% higher and failed in two runs",
    "cached: the user's state is kept; mixed: one request in ten is for a new user; cold: each is, whose history must "
    "be encoded; a DLRM keeps nothing",
    "times: the rate over the DLRM's; p50, p99: ms from the intended time",
)

_KINDS = ((DLRM, "any", 0.0), (RANKER, "cached", 0.0), (RANKER, "mixed", 0.1), (RANKER, "cold", 1.0))
"""Model, name and share of new users."""
_NUM_ITEMS = 10_000
_TRIES = 2
"""A neighbour of a moment on the cores should not end a search."""
_DEADLINES = 20
"""A request's deadline in bounds of the p99."""


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """ratio: of FLOPs. seconds: of each rate. rate: where each search begins."""

    ratio: float = 285.0
    dlrm: str = "base"
    shape: str = "d128L3"
    candidates: int = 1_024
    p99_ms: float = 80.0
    seconds: float = 8.0
    rate: float = 12.0


@dataclass(frozen=True, slots=True)
class ServingRow:
    """One model under one kind of load. holds, fails: see NOTES, with the percentiles at the rate that held, or at the
    lowest that was tried. same: at the DLRM's highest rate, None where that is unknown.
    """

    model: str
    kind: str
    backend: str
    holds: float | None
    fails: float | None
    p50_ms: float | None
    p99_ms: float | None
    encoded: float
    same_p50_ms: float | None
    same_p99_ms: float | None
    wrong: int


@dataclass(frozen=True, slots=True)
class ServingResult:
    """Everything that `mfalcon bench dlrm-serving` knows. same_rate: at which the p99 of all are compared."""

    benchmark: str
    machine: Machine
    commit: str | None
    options: ServingOptions
    pair: Pair
    same_rate: float | None
    rows: tuple[ServingRow, ...]

    @property
    def complaints(self) -> list[str]:
        """Wrong answers: a server that is asked too much may answer nobody, but nobody wrongly."""
        return [f"{row.model}, {row.kind}: {row.wrong} wrong answers" for row in self.rows if row.wrong]


def run(options: ServingOptions, progress: Callable[[str], None]) -> ServingResult:
    """Search on a server of its own, which is killed afterwards. Raises ConfigError before it is started, EngineFailure
    if it does not start, CancelledError once it is interrupted.
    """
    (pair,) = pairs_of(options.ratio, [options.dlrm], [options.shape])
    for _, _, cold_share in _KINDS:
        _traffic(options, pair, cold_share)
    machine = this_machine()
    models = {
        DLRM: dlrm_checkpoint(dlrm_named(options.dlrm), _NUM_ITEMS),
        RANKER: random_checkpoint(RANKERS[options.shape], _NUM_ITEMS, max_history=pair.n),
    }
    with tempfile.TemporaryDirectory() as folder, _served(Path(folder), models) as address:
        item_ids = models[RANKER].items.item_id
        found: dict[tuple[str, str], LoadResult] = {}
        for model, kind, cold_share in _KINDS:
            progress(f"{model}, {kind}: the highest rate")
            found[model, kind] = asyncio.run(_load(options, pair, address, model, cold_share, item_ids, progress))
        of_dlrm = found[DLRM, "any"].found
        same_rate, same = of_dlrm.holds if of_dlrm else None, {}
        for model, kind, cold_share in _KINDS if same_rate is not None else ():
            progress(f"{model}, {kind}: at the DLRM's highest rate")
            given = (options, pair, address, model, cold_share, item_ids, progress)
            same[model, kind] = asyncio.run(_load(*given, same_rate))
    rows = tuple(_row(model, kind, found[model, kind], same.get((model, kind))) for model, kind, _ in _KINDS)
    return ServingResult("dlrm-serving", machine, commit(), options, pair, same_rate, rows)


def page(result: ServingResult) -> Iterator[Part]:
    """A row for each model and kind of load, and what each word means."""
    yield headline(result.machine, result.commit)
    pair, options = result.pair, result.options
    yield (
        f"DLRM {pair.dlrm} ({pair.dlrm_flops / 1e6:.2f} MFLOPs), ranker {pair.shape} with n={pair.n:,} events "
        f"({pair.ranker_flops / 1e9:.2f} GFLOPs, {pair.ratio:.0f} times)"
    )
    baseline = result.rows[0].holds
    columns = ("model", "load", "backend", "rate", "fails at", "times", "p50 ms", "p99 ms", "encoded")
    rows = [
        (
            *(row.model, row.kind, row.backend),
            *(as_number(row.holds) if row.holds else "none", as_number(row.fails), _times(row.holds, baseline)),
            *(as_number(row.p50_ms), as_number(row.p99_ms), f"{row.encoded:.0%}"),
        )
        for row in result.rows
    ]
    asked = f"m={options.candidates:,}, {options.seconds:g} s a rate"
    yield Table(f"Highest rate with p99 <= {options.p99_ms:g} ms, {asked}", columns, rows)
    if result.same_rate is not None:
        p99 = result.rows[0].same_p99_ms
        same = [
            (row.model, row.kind, as_number(row.same_p50_ms), as_number(row.same_p99_ms), _no_higher(row, p99))
            for row in result.rows
        ]
        title = f"At the DLRM's highest rate, {as_number(result.same_rate)} a second"
        yield Table(title, ("model", "load", "p50 ms", "p99 ms", "no higher than the DLRM's"), same)
    yield "\n".join(f"- {note}" for note in (*result.complaints, *NOTES))


def _times(rate: float | None, baseline: float | None) -> str:
    return "-" if rate is None or baseline is None else f"{rate / baseline:.2f}"


def _no_higher(row: ServingRow, p99_ms: float | None) -> str:
    if row.model == DLRM or row.same_p99_ms is None or p99_ms is None:
        return "-"
    return "yes" if row.same_p99_ms <= p99_ms else "NO"


@contextmanager
def _served(folder: Path, models: dict[str, Checkpoint]) -> Iterator[str]:
    """Its gRPC address."""
    lines = []
    for name, model in models.items():
        path = folder / name
        checkpoints.save(path, model.model, model.items)
        lines += ["[[models]]", f'name = "{name}"', f'checkpoint = "{path}"']
    settings = folder / "settings.toml"
    settings.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mfalcon.cli", "serve", "--config", str(settings)]
    running = guarded([*command, "--grpc-port", "0", "--http-port", "0"], subprocess.DEVNULL)
    try:
        assert running.process.stdout is not None
        words = running.process.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise EngineFailure("the server of both models did not start")
        yield words[1].removeprefix("grpc=")
    finally:
        end(running)


async def _load(
    options: ServingOptions,
    pair: Pair,
    address: str,
    model: str,
    cold_share: float,
    item_ids: Ids,
    progress: Callable[[str], None],
    rate: float | None = None,
) -> LoadResult:
    """A search, or a run at a rate."""
    target = GrpcTarget(address, model=model)
    asked = LoadOptions(
        target=address,
        main=_traffic(options, pair, cold_share),
        rates=(rate or options.rate,),
        item_ids=item_ids,
        seconds=options.seconds,
        search_p99_ms=options.p99_ms if rate is None else None,
        search_tries=_TRIES,
    )
    try:
        done = await load(asked, target, progress)
        if any(run.stopped for run in done.runs):  # half a search is no result
            raise asyncio.CancelledError
        return done
    finally:
        await target.close()


def _traffic(options: ServingOptions, pair: Pair, cold_share: float) -> Traffic:
    """Raises ConfigError for what no run can be asked."""
    asked = {"rate": options.rate, "candidates": options.candidates, "history": pair.n, "cold_share": cold_share}
    return traffic_of({**asked, "deadline_ms": round(_DEADLINES * options.p99_ms), "users": 8})


def _row(model: str, kind: str, found: LoadResult, same: LoadResult | None) -> ServingRow:
    holds = found.found.holds if found.found else None
    # The run that held at the rate is the last one there.
    told = min((run.main for run in reversed(found.runs)), key=lambda one: abs(one.traffic.rate - (holds or 0.0)))
    at_same = same.runs[0].main if same is not None else None
    return ServingRow(
        model=model,
        kind=kind,
        backend=found.backend,
        holds=holds,
        fails=found.found.fails if found.found else None,
        p50_ms=_percentile(told, 0.5),
        p99_ms=_percentile(told, 0.99),
        encoded=told.encoded / max(1, told.right),
        same_p50_ms=None if at_same is None else _percentile(at_same, 0.5),
        same_p99_ms=None if at_same is None else _percentile(at_same, 0.99),
        wrong=sum(run.main.wrong for result in (found, same) if result is not None for run in result.runs),
    )


def _percentile(report: ClassReport, which: float) -> float | None:
    if report.answered is None:
        return None
    return report.answered.p50_ms if which == 0.5 else report.answered.p99_ms

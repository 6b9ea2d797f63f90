"""The highest rate that a server bears within a p99: users whose states are kept, new ones, a mix of both; beside the
server that computes one dense forward a request (`loadtest.bench.masked_server`).
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtest.faults.fleet import Fleet, end, guarded
from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.load_result import LoadResult
from loadtest.load.open_loop import LoadOptions, load
from loadtest.load.traffic import Traffic, traffic_of
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import as_number, headline
from loadtest.report.table import Part, Table
from mfalcon.errors import EngineFailure
from mfalcon.models.manifest import CONFIG, load_items, read_config, read_manifest, verified

MFALCON, MASKED = "mfalcon", "one masked forward"
NOTES = (
    "rate: requests a second, at the times of a Poisson process, all of them answered rightly, with a p99 within the "
    "bound; the next rate that was tried is at most 5% higher and failed in two runs",
    "cached: the user's state is kept; cold: each request is for a new user, whose history must be encoded; mixed: one "
    "in ten is",
    "one masked forward: a gRPC server with the same model in plain torch, one dense forward over [history, "
    "candidates] a request, nothing kept; cached or cold is one to it",
    "p50, p99: ms from the intended time, at that rate; where no rate held, at the lowest that was tried",
    "times: the rate over that of one masked forward",
)

_TRIES = 2
"""A neighbour of a moment on the cores should not end a search."""


@dataclass(frozen=True, slots=True)
class SaturationOptions:
    """checkpoints: of float32 models. history: events of each user, at most the model's window.

    seconds: of each rate. rate: where each search begins.
    """

    checkpoints: tuple[Path, ...]
    candidates: int = 1_000
    history: int = 1_024
    p99_ms: float = 80.0
    seconds: float = 10.0
    rate: float = 20.0
    kinds: tuple[tuple[str, float], ...] = (("cached", 0.0), ("mixed", 0.1), ("cold", 1.0))
    """Name and share of new users."""


@dataclass(frozen=True, slots=True)
class SaturationRow:
    """One server under one kind of load; see NOTES. encoded: of the answers, which had some history to encode."""

    model: str
    history: int
    server: str
    kind: str
    rate: float | None
    fails: float | None
    p50_ms: float | None
    p99_ms: float | None
    encoded: float
    requests: int


@dataclass(frozen=True, slots=True)
class SaturationResult:
    """Everything that `mfalcon bench saturation` knows."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    candidates: int
    p99_ms: float
    seconds: float
    rows: tuple[SaturationRow, ...]
    complaints: tuple[str, ...]


def run(options: SaturationOptions, progress: Callable[[str], None]) -> SaturationResult:
    """Search on servers of its own, which are killed afterwards. Raises CheckpointError or ConfigError before one is
    started, EngineFailure if it does not start, CancelledError once it is interrupted.
    """
    for path in options.checkpoints:
        verified(path, (CONFIG,))
        _traffic(options, path)
    machine, rows, complaints = this_machine(), [], []
    for path in options.checkpoints:
        for server, kinds in ((MASKED, (("any", 0.0),)), (MFALCON, options.kinds)):
            with _served(server, path) as address:
                for kind, cold_share in kinds:
                    progress(f"{path.name}: {server}, {kind}")
                    found = asyncio.run(_search(options, path, address, cold_share, progress))
                    rows.append(_row(options, path, server, kind, found))
                    # A server that is asked too much may answer nobody, but nobody wrongly.
                    wrong = sum(run.main.wrong for run in found.runs)
                    complaints += [f"{path.name}, {server}, {kind}: {wrong} wrong answers"] if wrong else []
    return SaturationResult(
        benchmark="saturation",
        machine=machine,
        commit=commit(),
        notes=NOTES,
        candidates=options.candidates,
        p99_ms=options.p99_ms,
        seconds=options.seconds,
        rows=tuple(rows),
        complaints=tuple(complaints),
    )


def page(result: SaturationResult) -> Iterator[Part]:
    """A row for each server and kind of load, and what each word means."""
    yield headline(result.machine, result.commit)
    baseline = {row.model: row.rate for row in result.rows if row.server == MASKED}
    columns = ("model", "server", "load", "rate", "fails at", "times", "p50 ms", "p99 ms", "encoded", "requests")
    rows = [
        (
            *(f"{row.model}, n={row.history:,}", row.server, row.kind),
            *(as_number(row.rate) if row.rate else "none", as_number(row.fails)),
            *(_times(row.rate, baseline[row.model]), as_number(row.p50_ms), as_number(row.p99_ms)),
            *(f"{row.encoded:.0%}", f"{row.requests:,}"),
        )
        for row in result.rows
    ]
    yield Table(
        f"Highest rate with p99 <= {result.p99_ms:g} ms, m={result.candidates:,}, {result.seconds:g} s a rate",
        columns,
        rows,
    )
    yield "\n".join(f"- {note}" for note in (*result.complaints, *result.notes))


def _times(rate: float | None, baseline: float | None) -> str:
    if rate is None:
        return "-"
    return "-" if baseline is None else f"{rate / baseline:.1f}"


@contextmanager
def _served(server: str, path: Path) -> Iterator[str]:
    """Its gRPC address."""
    if server == MFALCON:
        with Fleet(path, 1, ()) as fleet:
            yield fleet.targets[0]
        return
    running = guarded(
        [sys.executable, "-m", "loadtest.bench.masked_server", "--checkpoint", str(path)], subprocess.DEVNULL
    )
    try:
        assert running.process.stdout is not None
        said, _, address = running.process.stdout.readline().strip().partition("grpc=")
        if said != "ready ":
            raise EngineFailure("the server of one masked forward did not start")
        yield address
    finally:
        end(running)


async def _search(
    options: SaturationOptions, path: Path, address: str, cold_share: float, progress: Callable[[str], None]
) -> LoadResult:
    target = GrpcTarget(address)
    asked = LoadOptions(
        target=address,
        main=_traffic(options, path, cold_share),
        rates=(options.rate,),
        item_ids=load_items(path).item_id,
        seconds=options.seconds,
        version=read_manifest(path).fingerprint,
        search_p99_ms=options.p99_ms,
        search_tries=_TRIES,
    )
    try:
        found = await load(asked, target, progress)
        if found.found is None:  # it was interrupted: half a search is no result
            raise asyncio.CancelledError
        return found
    finally:
        await target.close()


def _traffic(options: SaturationOptions, path: Path, cold_share: float = 0.0) -> Traffic:
    """Raises ConfigError for what no run can be asked."""
    history = _history(options, path)
    asked = {"rate": options.rate, "candidates": options.candidates, "history": history, "cold_share": cold_share}
    return traffic_of(asked)


def _row(options: SaturationOptions, path: Path, server: str, kind: str, found: LoadResult) -> SaturationRow:
    holds = found.found.holds if found.found else None
    # The run that held at the rate is the last one there.
    told = min((run.main for run in reversed(found.runs)), key=lambda one: abs(one.traffic.rate - (holds or 0.0)))
    answered = told.answered
    return SaturationRow(
        model=path.name,
        history=_history(options, path),
        server=server,
        kind=kind,
        rate=holds,
        fails=found.found.fails if found.found else None,
        p50_ms=answered.p50_ms if answered else None,
        p99_ms=answered.p99_ms if answered else None,
        encoded=told.encoded / max(1, told.right),
        requests=told.sent,
    )


def _history(options: SaturationOptions, path: Path) -> int:
    return min(options.history, read_config(path / CONFIG).max_history)

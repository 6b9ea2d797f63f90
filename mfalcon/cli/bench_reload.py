"""`mfalcon bench reload`: latency around reloads, with states warmed before the swap and without."""

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from loadtest.bench.reload import ReloadOptions, ReloadResult, ReloadResults, run
from loadtest.faults.redis_server import HOST, free_port
from loadtest.report.table import Part, Table
from mfalcon.cli.bench_output import progress, show
from mfalcon.cli.output import JsonOption
from mfalcon.cli.process import serving
from mfalcon.models import checkpoint

_DEFAULTS = ReloadOptions(())


def bench_reload(
    path: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Exchanged with a copy of other weights.")],
    warm_users: Annotated[
        list[int] | None, typer.Option(min=0, help="--reload-warm-users of a server; repeatable, one after the other.")
    ] = None,
    reloads: Annotated[int, typer.Option(min=3, help="Reloads of each server.")] = _DEFAULTS.num_reloads,
    pause_s: Annotated[float, typer.Option(min=2.5, help="Seconds between two.")] = _DEFAULTS.pause_s,
    clients: Annotated[int, typer.Option(min=1, help="Clients in a closed loop.")] = _DEFAULTS.num_clients,
    users: Annotated[int, typer.Option(min=1, help="Users of all clients.")] = _DEFAULTS.num_users,
    events: Annotated[int, typer.Option(min=1, help="Events of a user at first.")] = _DEFAULTS.num_events,
    m: Annotated[int, typer.Option("--m", min=1, help="Number of candidates.")] = _DEFAULTS.num_candidates,
    per_second: Annotated[float, typer.Option(min=0.1, help="Calls a second, of all clients.")] = _DEFAULTS.per_second,
    json_output: JsonOption = False,
) -> None:
    """Latency of ranks around hot reloads; exit code 1 if a request failed or a score is wrong."""
    torch.set_num_threads(1)
    results: dict[str, ReloadResult] = {}
    with tempfile.TemporaryDirectory(prefix="mfalcon-") as parent:
        first = checkpoint.load(path)
        other = Path(parent) / "other"
        _save_other(path, other)
        versions = {one.fingerprint[:12]: one for one in (first, checkpoint.load(other))}
        options = ReloadOptions(
            (str(other), str(path.resolve())), reloads, pause_s, clients, users, events, m, per_second
        )
        for number in warm_users or [1_000, 0]:
            port, name = free_port(), f"{number} users warmed"
            flags = ("--admin-port", str(port), "--reload-warm-users", str(number))
            with serving(path, *flags) as server:
                memory = Path(f"/proc/{server.process.pid}/statm")
                results[name] = run(
                    options,
                    server.grpc,
                    f"{HOST}:{port}",
                    partial(_resident_mb, memory),
                    versions,
                    partial(_say, name),
                )
    show(ReloadResults("reload", results), _page, json_output)
    if any(result.num_failed or result.num_wrong for result in results.values()):
        raise typer.Exit(1)


def _save_other(path: Path, directory: Path) -> None:
    """The same model with other weights: 1% off, each by itself."""
    loaded = checkpoint.load(path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn(parameter.shape, generator=generator))
    checkpoint.save(directory, loaded.model, loaded.items)


def _say(name: str, text: str) -> None:
    progress(f"{name}: {text}")


def _resident_mb(statm: Path) -> float:
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def _page(measured: ReloadResults) -> Iterator[Part]:
    results = measured.servers
    one = next(iter(results.values()))
    columns = ("server", "phase", "calls", "p50 ms", "p99 ms", "encoded")
    rows = [
        (name, row.phase, str(row.num_calls), f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.encoded_share:.1%}")
        for name, result in results.items()
        for row in result.phases
    ]
    yield Table(f"ranks around {one.num_reloads} reloads of each server, {one.machine.cpu}", columns, rows)
    totals = [
        (
            *(name, f"{result.reload_s:.1f}", str(result.num_calls), str(result.num_failed), str(result.num_checked)),
            *(str(result.num_wrong), f"{result.worst_error:.1e}"),
            *(f"{result.memory_before_mb:.0f}", f"{result.memory_after_mb:.0f}"),
        )
        for name, result in results.items()
    ]
    ends = ("server", "reload s", "calls", "failed", "checked", "wrong", "worst error", "MiB before", "MiB after")
    yield Table("all calls", ends, totals)

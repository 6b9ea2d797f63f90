"""`mfalcon loadtest`: load a running server in an open loop (`--rate`), or with the Locust scenario."""

import asyncio
import shlex
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError

from loadtest.load.grpc_target import GrpcTarget
from loadtest.load.load_result import LoadResult
from loadtest.load.open_loop import LoadOptions, load
from loadtest.load.target import Target
from loadtest.load.traffic import parse_traffic, traffic_of
from loadtest.report.pages import load_page
from loadtest.report.plot import plot_load, plot_watched
from loadtest.report.result import write_json
from loadtest.report.table import as_markdown
from loadtest.scenarios.catalog import SCENARIOS
from loadtest.scenarios.page import page as scenario_page
from loadtest.scenarios.play import play
from mfalcon.cli.bench_output import picture_file, progress, result_file, show
from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, context_of, tls_of, token_of
from mfalcon.errors import CallFailed, ConfigError, DataError
from mfalcon.models.manifest import load_items, read_manifest
from mfalcon.types import Ids
from mfalcon_client import Tls, TokenFile

_OPEN, _CLOSED = "Open loop (--rate)", "Locust"
_INTERRUPTED = 130
"""The exit code of a command that Ctrl-C ended."""


def loadtest(
    context: typer.Context,
    target: Annotated[
        str, typer.Option(help="HOST:PORT of the server's gRPC; with --rate also grpc://HOST:PORT or http://HOST:PORT.")
    ] = "127.0.0.1:50051",
    users: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --rate: users who have a history, 32; else clients at the height of the scenario."
        ),
    ] = None,
    seconds: Annotated[int, typer.Option(min=1, max=86_400, help="How long; with --rate each of them.")] = 30,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates of a request.")] = 500,
    items: Annotated[int, typer.Option(min=1, help="Draw item ids from 1 to this.")] = 1_682,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON object instead of tables."),
    ] = False,
    scenario: Annotated[
        str, typer.Option(help=f"What clients do: {', '.join(SCENARIOS)}.", rich_help_panel=_CLOSED)
    ] = "mixed",
    user_space: Annotated[
        int | None,
        typer.Option(min=1, help="Users with a history, drawn by Zipf's law; most often 200.", rich_help_panel=_CLOSED),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Locust's report, HTML.", callback=result_file, rich_help_panel=_CLOSED)
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            max=100_000,
            help="Requests a second, at the times of a Poisson process; repeatable.",
            rich_help_panel=_OPEN,
        ),
    ] = None,
    deadline_ms: Annotated[
        int, typer.Option(min=0, help="Of each request, from its intended time on; 0 for none.", rich_help_panel=_OPEN)
    ] = 1_000,
    connections: Annotated[
        int, typer.Option(min=1, max=1_000, help="gRPC connections, used in turns.", rich_help_panel=_OPEN)
    ] = 4,
    history: Annotated[int, typer.Option(min=0, help="Events of each user.", rich_help_panel=_OPEN)] = 256,
    cold_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the requests, each for a new user.", rich_help_panel=_OPEN)
    ] = 0.0,
    cancel_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the requests, cancelled at random.", rich_help_panel=_OPEN)
    ] = 0.0,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="A class of requests at the same time: name, rate or clients (a closed loop), candidates, "
            "deadline_ms, users, history, cold_share (new users), cancel_share, pause_ms; repeatable.",
            rich_help_panel=_OPEN,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The served one: item ids that the model knows.", rich_help_panel=_OPEN)
    ] = None,
    item_ids: Annotated[
        Path | None, typer.Option(help="A file of item ids, one a line.", rich_help_panel=_OPEN)
    ] = None,
    check: Annotated[
        bool | None,
        typer.Option(
            help="Hold scores against those of before the load, within 1e-5; by default if it computes in float32.",
            rich_help_panel=_OPEN,
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="From --rate on, the highest rate whose p99 is at most --p99-ms and of which nothing is lost.",
            rich_help_panel=_OPEN,
        ),
    ] = False,
    p99_ms: Annotated[float | None, typer.Option(min=0, help="The bound of --search.", rich_help_panel=_OPEN)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of times, items and events.", rich_help_panel=_OPEN)] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(help="Also write the result here, as JSON.", callback=result_file, rich_help_panel=_OPEN),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw goodput and p99 over the rate here, a PNG (extra: plot).",
            callback=picture_file,
            rich_help_panel=_OPEN,
        ),
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="An earlier --json-file to draw in the same plot.", rich_help_panel=_OPEN)
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(help="Also write the page here, as Markdown.", callback=result_file, rich_help_panel=_OPEN),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The server's HTTP: sample memory, descriptors and threads from its /metrics (extra: loadtest).",
            rich_help_panel=_OPEN,
        ),
    ] = None,
    watch_plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw what --watch saw of the last rate here, over time, a PNG (extra: plot).",
            callback=picture_file,
            rich_help_panel=_OPEN,
        ),
    ] = None,
    fail_on_slope: Annotated[
        bool,
        typer.Option("--fail-on-slope", help="Exit code 1 if a figure of --watch grows.", rich_help_panel=_OPEN),
    ] = False,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
) -> None:
    """Load a running server and delete its users; exit code 1 if anything is wrong, lost or nothing answered.

    With --rate requests leave at their times whatever becomes of them (open loop), and each has one entry in a ledger.
    Without it Locust plays a scenario: clients that each wait for their answer.
    """
    _refuse_others(context, _CLOSED if rate else _OPEN)
    tls = tls_of(tls_ca, tls_cert, tls_key)
    verify = None if tls_ca is None else context_of(tls_ca, tls_cert, tls_key)
    if not rate:
        _refuse_credentials(tls, token_file)
        given = {"--clients": users, "--candidates": candidates, "--num-users-space": user_space, "--num-items": items}
        flags = [text for name, value in given.items() if value is not None for text in (name, str(value))]
        played = play(scenario, target, seconds, flags, report)
        show(played, lambda one: scenario_page([one]), as_json)
        return
    if search != (p99_ms is not None):
        raise ConfigError("--search and --p99-ms: one needs the other")
    if before is not None and plot is None:
        raise ConfigError("--before: it is drawn by --plot, which is not given")
    if watch is None and (watch_plot is not None or fail_on_slope):
        raise ConfigError("--watch-plot, --fail-on-slope: they need --watch")
    if checkpoint is not None and item_ids is not None:
        raise ConfigError("--checkpoint and --item-ids: one at most")
    earlier = None if before is None else _read(before)
    options = LoadOptions(
        target=target,
        main=traffic_of(
            {
                "rate": rate[0],
                "candidates": candidates,
                "deadline_ms": deadline_ms,
                "users": users or 0,
                "history": history,
                "cold_share": cold_share,
                "cancel_share": cancel_share,
            }
        ),
        rates=tuple(rate),
        item_ids=_item_ids(checkpoint, item_ids, items),
        seconds=seconds,
        beside=tuple(map(parse_traffic, beside or [])),
        version="" if checkpoint is None else read_manifest(checkpoint).fingerprint,
        check=check,
        search_p99_ms=p99_ms,
        seed=seed,
        command=shlex.join(["mfalcon", *sys.argv[1:]]),
        fail_on_slope=fail_on_slope,
    )
    token = token_of(token_file, target.rpartition("://")[2].rstrip("/"), tls)
    live = progress if sys.stderr.isatty() else None
    try:
        result = asyncio.run(_load(options, connections, watch, live, tls, verify, token))
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    show(result, load_page, as_json)
    if json_file is not None:
        write_json(json_file, result)
    if write is not None:
        write.write_text(as_markdown(load_page(result)) + "\n", encoding="utf-8")
    if plot is not None:
        plot_load({"now": result} if earlier is None else {"before": earlier, "now": result}, plot)
    if watch_plot is not None:
        plot_watched(result, watch_plot)
    for complaint in result.complaints:
        typer.echo(complaint, err=True)
    if result.complaints:
        raise typer.Exit(1)


def _refuse_others(context: typer.Context, panel: str) -> None:
    """Options of the other kind of load mean nothing here. Raises ConfigError."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if getattr(option, "rich_help_panel", None) == panel and source is not None and source.name == "COMMANDLINE":
            raise ConfigError(f"{option.opts[0]}: it {'needs' if panel == _OPEN else 'does not go with'} --rate")


def _refuse_credentials(tls: Tls | None, token_file: Path | None) -> None:
    """Locust's clients speak no TLS and send no token. Raises ConfigError."""
    for option, given in (("--tls-ca", tls), ("--token-file", token_file)):
        if given is not None:
            raise ConfigError(f"{option}: it needs --rate")


async def _load(
    options: LoadOptions,
    connections: int,
    watch: str | None,
    live: Callable[[str], None] | None,
    tls: Tls | None,
    verify: ssl.SSLContext | None,
    token: TokenFile | None,
) -> LoadResult:
    target = _target(options.target, connections, tls, verify, token)
    try:
        if watch is None:
            return await load(options, target, progress, live)
        from loadtest.load.process_metrics import process_metrics  # noqa: PLC0415 an optional dependency

        async with process_metrics(watch, verify or True) as ask:
            try:
                await ask()
            except CallFailed as error:
                raise ConfigError(f"--watch: {watch} answers {error}") from error
            return await load(options, target, progress, live, ask)
    finally:
        await target.close()


def _target(
    address: str, connections: int, tls: Tls | None, verify: ssl.SSLContext | None, token: TokenFile | None
) -> Target:
    """The transport that the address names."""
    scheme, separator, rest = address.rpartition("://")
    if not separator or scheme == "grpc":
        return GrpcTarget(rest, connections, tls=tls, token=token)
    if (scheme == "https") != (verify is not None):
        raise ConfigError(f"--tls-ca: it goes with https, and --target is {address!r}")
    if scheme in ("http", "https"):
        from loadtest.load.http_target import HttpTarget  # noqa: PLC0415 an optional dependency

        return HttpTarget(address, verify or True, token)
    raise ConfigError(
        f"--target: got {address!r}, must be HOST:PORT, grpc://HOST:PORT, http://HOST:PORT or https://HOST:PORT"
    )


def _item_ids(checkpoint: Path | None, file: Path | None, items: int) -> Ids:
    """Those to draw from."""
    if checkpoint is not None:
        return load_items(checkpoint).item_id
    if file is None:
        return np.arange(1, items + 1)
    try:
        ids = np.array([int(line) for line in file.read_text(encoding="utf-8").split()], dtype=np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"--item-ids: {file}: {error}") from error
    if len(ids) == 0:
        raise DataError(f"--item-ids: {file}: there is none")
    return ids


def _read(path: Path) -> LoadResult:
    """What --json-file wrote."""
    try:
        return TypeAdapter(LoadResult).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"--before: {path}: no result of mfalcon loadtest --rate") from error

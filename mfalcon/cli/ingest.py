"""`mfalcon ingest`: events as lines of JSON into a running server, each of them once."""

import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, tls_of, token_of
from mfalcon.cli.ingesting import (
    IgnoreOption,
    InFlightOption,
    LateEventsOption,
    PatienceOption,
    RejectsOption,
    Teller,
    check_late_events,
    sending,
    tell_end,
)
from mfalcon.cli.output import JsonOption
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.errors import ConfigError, DataError
from mfalcon.ingest.progress import Progress, alone
from mfalcon.ingest.run import IngestOptions
from mfalcon.ingest.run import ingest as run
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.ingest.stream import LineStream

STDIN = "-"


def ingest(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Lines of JSON, one event each; - is standard input.")],
    name: Annotated[
        str, typer.Option(help="Of the stream, by which a repetition is known; the file's path if not given.")
    ] = "",
    progress: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write how far it is; run again, it goes on there."),
    ] = None,
    rejects: RejectsOption = None,
    late_events: LateEventsOption = "",
    ignore: IgnoreOption = "",
    window: Annotated[int, typer.Option(help="Events that are acknowledged together.", min=1, max=1_000_000)] = 50_000,
    in_flight: InFlightOption = 2,
    patience: PatienceOption = 300.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Send events to a running server, many users a call; with --progress each is written once, whatever crashes.

    A line: {"user_id": "ann", "item_id": 50, "time_ms": 1700000000000, "actions": ["like"], "value": 4.5}. Actions are
    names that the served model has for them, one name, or a bitmask; actions and value may be left out.
    """
    check_late_events(late_events)
    if source == STDIN and progress is not None and not name:
        raise ConfigError("--name: got nothing, must be given with --progress and standard input")
    name = name or ("standard input" if source == STDIN else str(Path(source).absolute()))
    options = IngestOptions(window, late_events=late_events, progress=progress, rejects=rejects)
    tls = tls_of(tls_ca, tls_cert, tls_key)
    token, pace = token_of(token_file, target, tls), Pace(in_flight=in_flight, patience_s=patience)

    async def send(file: BinaryIO) -> tuple[Progress, Sender]:
        async with sending(target, tls, token, ignore, pace) as (reader, sender):
            stream = LineStream(file, name, reader, leaves_out=rejects is not None)
            return await run(stream, name, sender, options, Teller().tell), sender

    with ExitStack() as stack:
        if progress is not None:
            stack.enter_context(alone(progress))
        file = sys.stdin.buffer if source == STDIN else stack.enter_context(_opened(Path(source)))
        done, sender = asyncio.run(send(file))
    tell_end(done, sender, json_output)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error

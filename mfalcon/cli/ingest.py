"""`mfalcon ingest`: events as lines of JSON into a running server, each of them once."""

import asyncio
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from mfalcon.cli.calling import TlsCaOption, TlsCertOption, TlsKeyOption, TokenOption, tls_of, token_of
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.cli.rank import DEFAULT_TARGET, TargetOption
from mfalcon.errors import CallFailed, ConfigError, DataError
from mfalcon.ingest.lines import LineReader
from mfalcon.ingest.progress import Progress, alone
from mfalcon.ingest.run import IngestOptions
from mfalcon.ingest.run import ingest as run
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.ingest.stream import LineStream
from mfalcon.types import LATE_EVENTS
from mfalcon_client import AsyncClient, ClientError

STDIN = "-"
_TELL_S = 2.0
_console = Console(stderr=True, highlight=False)


def ingest(
    source: Annotated[str, typer.Argument(metavar="FILE", help="Lines of JSON, one event each; - is standard input.")],
    name: Annotated[
        str, typer.Option(help="Of the stream, by which a repetition is known; the file's path if not given.")
    ] = "",
    progress: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write how far it is; run again, it goes on there."),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write lines that cannot be taken; else the first one ends it."),
    ] = None,
    late_events: Annotated[
        str,
        typer.Option(help="What becomes of late ones: reject, clamp, insert; as the server has it if not given."),
    ] = "",
    ignore: Annotated[str, typer.Option(help="Fields that may be there and are not read: a,b,c.")] = "",
    window: Annotated[int, typer.Option(help="Events that are acknowledged together.", min=1, max=1_000_000)] = 50_000,
    in_flight: Annotated[int, typer.Option(help="Calls at once.", min=1, max=64)] = 2,
    patience: Annotated[
        float, typer.Option(help="Seconds that events may find no server, or no room, before all is given up.", min=0)
    ] = 300.0,
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
    if late_events not in ("", *LATE_EVENTS):
        raise ConfigError(f"--late-events: got {late_events!r}, must be one of {', '.join(LATE_EVENTS)}")
    if source == STDIN and progress is not None and not name:
        raise ConfigError("--name: got nothing, must be given with --progress and standard input")
    name = name or ("standard input" if source == STDIN else str(Path(source).absolute()))
    options = IngestOptions(window, late_events=late_events, progress=progress, rejects=rejects)
    ignored = frozenset(part.strip() for part in ignore.split(",") if part.strip())
    tls = tls_of(tls_ca, tls_cert, tls_key)
    token = token_of(token_file, target, tls)

    async def send(file: BinaryIO) -> tuple[Progress, Sender]:
        async with AsyncClient(target, timeout_s=10.0, tls=tls, token=token, token_in_clear=True) as client:
            try:
                model = await client.get_model()
            except ClientError as error:
                raise CallFailed(error.code, error.details) from error
            reader = LineReader({action: bit for bit, action in enumerate(model.actions)}, ignored)
            stream = LineStream(file, name, reader, leaves_out=rejects is not None)
            sender = Sender(client, Pace(in_flight=in_flight, patience_s=patience))
            return await run(stream, name, sender, options, _Teller().tell), sender

    with ExitStack() as stack:
        if progress is not None:
            stack.enter_context(alone(progress))
        file = sys.stdin.buffer if source == STDIN else stack.enter_context(_opened(Path(source)))
        done, sender = asyncio.run(send(file))
    if json_output:
        told = {"events": done.num_events, "rejected": done.num_rejected, "bytes": done.acknowledged}
        print_json(told | {"found": sender.num_found, "discarded": sender.num_discarded})
        return
    extra = f", {done.num_rejected:,} left out" if done.num_rejected else ""
    extra += f", {sender.num_found:,} were there" if sender.num_found else ""
    extra += f", {sender.num_discarded:,} too old to be kept" if sender.num_discarded else ""
    Console(highlight=False).print(f"{done.num_events:,} events acknowledged{extra}")


class _Teller:
    """Tells how far it is, every two seconds at most."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def tell(self, done: Progress, rate: float) -> None:
        if (now := time.monotonic()) - self._told_at >= _TELL_S:
            self._told_at = now
            _console.print(f"{done.num_events:,} events acknowledged, {rate:,.0f} a second")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error

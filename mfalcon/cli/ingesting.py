"""What `mfalcon ingest` and `mfalcon ingest-kafka` share: options, the server that they send to, what they tell."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console

from mfalcon.cli.output import print_json
from mfalcon.errors import CallFailed, ConfigError
from mfalcon.ingest.lines import LineReader
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.types import LATE_EVENTS
from mfalcon_client import AsyncClient, ClientError, Tls, TokenFile

RejectsOption = Annotated[
    Path | None,
    typer.Option("--rejects", metavar="FILE", help="Where to write what cannot be taken; else the first ends it."),
]
LateEventsOption = Annotated[
    str, typer.Option(help="What becomes of late ones: reject, clamp, insert; as the server has it if not given.")
]
IgnoreOption = Annotated[str, typer.Option(help="Fields that may be there and are not read: a,b,c.")]
InFlightOption = Annotated[int, typer.Option(help="Calls at once.", min=1, max=64)]
PatienceOption = Annotated[
    float, typer.Option(help="Seconds that events may find no server, or no room, before all is given up.", min=0)
]
_TELL_S = 2.0
_stderr = Console(stderr=True, highlight=False)


class Done(Protocol):
    """How many events are in the log, and how many were left out."""

    @property
    def num_events(self) -> int: ...
    @property
    def num_rejected(self) -> int: ...


def check_late_events(late_events: str) -> None:
    """Raise ConfigError for what is none of LATE_EVENTS, nor empty."""
    if late_events not in ("", *LATE_EVENTS):
        raise ConfigError(f"--late-events: got {late_events!r}, must be one of {', '.join(LATE_EVENTS)}")


@asynccontextmanager
async def sending(
    target: str, tls: Tls | None, token: TokenFile | None, ignore: str, pace: Pace
) -> AsyncIterator[tuple[LineReader, Sender]]:
    """What reads events by the names of the served model, and what sends them. Raises CallFailed."""
    async with AsyncClient(target, timeout_s=10.0, tls=tls, token=token, token_in_clear=True) as client:
        try:
            model = await client.get_model()
        except ClientError as error:
            raise CallFailed(error.code, error.details) from error
        ignored = frozenset(part.strip() for part in ignore.split(",") if part.strip())
        yield LineReader({action: bit for bit, action in enumerate(model.actions)}, ignored), Sender(client, pace)


class Teller:
    """Tells how far it is, every two seconds at most."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def tell(self, done: Done, rate: float) -> None:
        """On standard error. rate: events a second."""
        if (now := time.monotonic()) - self._told_at >= _TELL_S:
            self._told_at = now
            _stderr.print(f"{done.num_events:,} events acknowledged, {rate:,.0f} a second")


def tell_end(done: Done, sender: Sender, json_output: bool) -> None:
    """On standard output."""
    if json_output:
        told = {"events": done.num_events, "rejected": done.num_rejected}
        print_json(told | {"found": sender.num_found, "discarded": sender.num_discarded})
        return
    extra = f", {done.num_rejected:,} left out" if done.num_rejected else ""
    extra += f", {sender.num_found:,} were there" if sender.num_found else ""
    extra += f", {sender.num_discarded:,} too old to be kept" if sender.num_discarded else ""
    Console(highlight=False).print(f"{done.num_events:,} events acknowledged{extra}")

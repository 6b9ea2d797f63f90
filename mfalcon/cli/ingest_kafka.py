"""`mfalcon ingest-kafka`: a topic of Kafka into a running server, each event once."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

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
from mfalcon.errors import ConfigError
from mfalcon.ingest.kafka import KafkaOptions, KafkaTopic, settings_of
from mfalcon.ingest.sender import Pace, Sender
from mfalcon.ingest.topic import Counts, TopicOptions, ingest_topic


def ingest_kafka(
    brokers: Annotated[str, typer.Argument(help="Of the cluster, some: host:port,host:port")],
    topic: Annotated[str, typer.Argument(help="Its messages are events as JSON, as of `mfalcon ingest`.")],
    group: Annotated[str, typer.Option(help="Consumer group, whose commits know how far it is.")] = "mfalcon",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="key=value lines for librdkafka: TLS, passwords.")
    ] = None,
    rejects: RejectsOption = None,
    late_events: LateEventsOption = "",
    ignore: IgnoreOption = "",
    window: Annotated[
        int, typer.Option(help="Events of a partition that are acknowledged together.", min=1, max=1_000_000)
    ] = 10_000,
    linger: Annotated[float, typer.Option(help="Seconds that events wait for more.", min=0.0)] = 0.5,
    to_end: Annotated[bool, typer.Option("--to-end", help="End where the topic ends now.")] = False,
    in_flight: InFlightOption = 2,
    patience: PatienceOption = 300.0,
    target: TargetOption = DEFAULT_TARGET,
    tls_ca: TlsCaOption = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    token_file: TokenOption = None,
    json_output: JsonOption = False,
) -> None:
    """Send the events of a topic to a running server until SIGTERM or Ctrl-C, each once; several may share it.

    One that is told to stop finishes what is on its way. One that dies leaves the rest to the others of its group.
    """
    check_late_events(late_events)
    settings = {} if config is None else settings_of(_read(config), str(config))
    tls = tls_of(tls_ca, tls_cert, tls_key)
    token, pace = token_of(token_file, target, tls), Pace(in_flight=in_flight, patience_s=patience)
    options = TopicOptions(late_events=late_events, rejects=rejects, to_end=to_end)
    read = KafkaTopic(KafkaOptions(brokers, topic, group, settings, window, linger))

    async def send() -> tuple[Counts, Sender]:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with sending(target, tls, token, ignore, pace) as (reader, sender):
            return await ingest_topic(read, reader, sender, options, stop, Teller().tell), sender

    try:
        done, sender = asyncio.run(send())
    finally:
        read.close()
    tell_end(done, sender, json_output)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: cannot read {path}: {error}") from error

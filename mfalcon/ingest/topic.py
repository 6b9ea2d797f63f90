"""A topic into a server, a partition's window at a time, until it is told to stop."""

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mfalcon.errors import DataError, InvalidInput
from mfalcon.ingest.kafka import Batch, KafkaTopic
from mfalcon.ingest.lines import LineReader, Row
from mfalcon.ingest.rejects import LeftOut, Rejects, opened_rejects
from mfalcon.ingest.run import LEAVE_OUT
from mfalcon.ingest.sender import Sender
from mfalcon.ingest.windows import Window, parts_of, stream_id


@dataclass(frozen=True, slots=True)
class TopicOptions:
    """most_events: of an append. late_events: see `Append`. rejects: the file for what is left out, None to end at the
    first event that cannot be taken. to_end: end where the topic ends now.
    """

    most_events: int = 10_000
    late_events: str = ""
    rejects: Path | None = None
    to_end: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What has become of a topic's messages here."""

    num_events: int = 0
    num_rejected: int = 0


async def ingest_topic(
    topic: KafkaTopic,
    reader: LineReader,
    sender: Sender,
    options: TopicOptions,
    stop: asyncio.Event,
    tell: Callable[[Counts, float], None] = lambda done, rate: None,
) -> Counts:
    """Send what comes until `stop`, when the window on its way is finished. Raises DataError for the first message that
    cannot be taken, where none may be left out, when the others of its window are in the log; and CallFailed.
    """
    done, began = Counts(), time.monotonic()
    keeping = nullcontext() if options.rejects is None else opened_rejects(options.rejects, None)
    with keeping as rejects:
        while not (stop.is_set() or (options.to_end and topic.is_done)):
            batch = await asyncio.to_thread(topic.next)
            if batch is not None:
                done = await _take(batch, reader, sender, options, rejects, done)
                await asyncio.to_thread(topic.acknowledge, batch)
                tell(done, done.num_events / (time.monotonic() - began))
    return done


async def _take(
    batch: Batch, reader: LineReader, sender: Sender, options: TopicOptions, rejects: Rejects | None, done: Counts
) -> Counts:
    """Send a window; the counts when all of it is acknowledged, or left out."""
    rows: list[Row] = []
    raws: dict[int, bytes] = {}
    left_out: dict[int, str] = {}
    for offset, raw in batch.messages:
        if not raw:  # the tombstone of a compacted topic
            continue
        raws[offset] = raw
        try:
            rows.append(reader.read(raw))
        except InvalidInput as error:
            left_out[offset] = str(error)
    window = Window.of(batch.begin, batch.end, rows, [offset for offset in raws if offset not in left_out])
    refused = await sender.send(parts_of(window, stream_id(batch.stream), options.late_events, options.most_events))
    left_out |= {int(each.part.places[0]): each.why for each in refused}
    told = [LeftOut(f"{batch.stream}@{offset}", raws[offset], left_out[offset]) for offset in sorted(left_out)]
    if told and rejects is None:
        raise DataError(f"{told[0].place}: {told[0].why}; {LEAVE_OUT}")
    if rejects is not None:
        rejects.add(told)
    return Counts(done.num_events + len(raws) - len(told), done.num_rejected + len(told))

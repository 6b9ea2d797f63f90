"""A stream into a server, window by window: a window counts as acknowledged when all of it is."""

import asyncio
import dataclasses
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from mfalcon.errors import DataError
from mfalcon.ingest import progress as progress_file
from mfalcon.ingest.progress import Progress
from mfalcon.ingest.rejects import LeftOut, Rejects, opened_rejects
from mfalcon.ingest.sender import Sender
from mfalcon.ingest.stream import LineStream, Taken
from mfalcon.ingest.windows import parts_of, stream_id

LEAVE_OUT = "--rejects FILE leaves such lines out and goes on"


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """window_events: of a window. most_events: of an append. late_events: see `Append`. progress: the file of it, None
    to write none. rejects: the file for what is left out, None to end at the first event that cannot be taken.
    """

    window_events: int = 50_000
    most_events: int = 10_000
    late_events: str = ""
    progress: Path | None = None
    rejects: Path | None = None


async def ingest(
    stream: LineStream,
    name: str,
    sender: Sender,
    options: IngestOptions,
    tell: Callable[[Progress, float], None] = lambda done, rate: None,
) -> Progress:
    """Send a stream from where it was acknowledged to its end; how far it is then. The next window is read while one is
    on its way. tell: is told the same after each window, with the events a second until then.

    Raises DataError for the first event that cannot be taken, where none may be left out, and CallFailed.
    """
    done = Progress(name) if options.progress is None else progress_file.read(options.progress, name)
    num_before, began = done.num_events, time.monotonic()
    await asyncio.to_thread(stream.skip, done.acknowledged, done.head)
    windows = stream.windows(options.window_events, done.sending)
    keeping = nullcontext() if options.rejects is None else opened_rejects(options.rejects, done.rejects_bytes)
    with keeping as rejects:
        reading = asyncio.create_task(asyncio.to_thread(next, windows, None))
        try:
            while (taken := await reading) is not None:
                end = taken.window.end
                _write(options.progress, dataclasses.replace(done, sending=end))
                reading = asyncio.create_task(asyncio.to_thread(next, windows, None))
                done = await _take(taken, done, sender, options, rejects)
                done = dataclasses.replace(done, head=stream.head_at(end))
                _write(options.progress, done)
                tell(done, (done.num_events - num_before) / (time.monotonic() - began))
        finally:
            await asyncio.wait((reading,))  # a thread cannot be interrupted, and its file is closed next
            reading.exception()
    return done


async def _take(
    taken: Taken, done: Progress, sender: Sender, options: IngestOptions, rejects: Rejects | None
) -> Progress:
    """Send a window; the progress when all of it is acknowledged, or left out."""
    window, name = taken.window, done.name
    parts = parts_of(window, stream_id(name), options.late_events, options.most_events)
    refused = await sender.send(parts)
    lines = [*taken.left_out, *((taken.lines[int(each.part.places[0])], each.why) for each in refused)]
    left_out = [LeftOut(line.number, line.raw, why) for line, why in sorted(lines, key=lambda each: each[0].number)]
    if rejects is None and left_out:
        raise DataError(f"{name}:{left_out[0].place}: {left_out[0].why}; {LEAVE_OUT}")
    return dataclasses.replace(
        done,
        acknowledged=window.end,
        sending=window.end,
        num_events=done.num_events + len(taken.lines) - len(refused),
        num_rejected=done.num_rejected + len(left_out),
        rejects_bytes=done.rejects_bytes if rejects is None else rejects.add(left_out),
    )


def _write(path: Path | None, done: Progress) -> None:
    if path is not None:
        progress_file.write(path, done)

"""What one appended event makes travel: chunks that its encoder writes, log and chunks that another replica reads."""

from dataclasses import dataclass

from loadtest.bench.replica import Replica
from loadtest.faults.redis_server import RedisServer
from mfalcon.engine.redis_parts import RedisOptions
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Append, Events

_EVENT_BYTES = 24


@dataclass(frozen=True, slots=True)
class AppendTraffic:
    """One event appended to a history of n that two replicas have read, and whose state is in Redis.

    chunks_of_state: of the state before. log_bytes_sent: by Redis to the second replica for the one event, replies and
    all; log_bytes_full: for the whole history. delta_bytes: what the event itself is. chunks_read: by either.
    """

    n: int
    dtype: str
    chunks_of_state: int
    chunks_written: int
    chunk_bytes_written: int
    chunks_read: int
    log_bytes_sent: int
    log_bytes_full: int
    delta_bytes: int
    encoded_events: int


async def append_traffic(
    server: RedisServer, checkpoint: Checkpoint, options: RedisOptions, events: Events
) -> AppendTraffic:
    """Count it for the last of the events, on a server that nobody else uses. options: with the log in Redis."""
    user_id, n = "append-traffic", len(events) - 1
    async with (
        Replica(checkpoint, options, probing=False) as writer,
        Replica(checkpoint, options, probing=False) as reader,
    ):
        await writer.log.append(user_id, Append(events[:n], 0), None)
        await writer.bring(user_id, "recompute")
        await reader.bring("nobody", "recompute")  # connections are open from here on
        quiet = _sent(server)
        quiet = _sent(server) - quiet  # what counting itself sends
        before = _sent(server)
        await reader.read(user_id)
        full = _sent(server) - before - quiet
        await reader.bring(user_id, "recompute")
        written, written_bytes, read = (_chunks(writer, reader, which) for which in ("written", "bytes", "read"))
        await writer.log.append(user_id, Append(events[n:], n), None)
        await writer.bring(user_id)
        before = _sent(server)
        await reader.read(user_id)
        delta = _sent(server) - before - quiet
        written_after, bytes_after = (_chunks(writer, reader, which) for which in ("written", "bytes"))
        brought = await reader.bring(user_id)
        per_event = checkpoint.prefix_model.tokens_per_event
        return AppendTraffic(
            n=n,
            dtype=writer.remote.states.layout.dtype.name.lower(),
            chunks_of_state=writer.remote.states.num_chunks(n),
            chunks_written=round(written_after - written),
            chunk_bytes_written=round(bytes_after - written_bytes),
            chunks_read=round(_chunks(writer, reader, "read") - read),
            log_bytes_sent=delta,
            log_bytes_full=full,
            delta_bytes=_EVENT_BYTES,
            encoded_events=brought.cache.encoded_tokens // per_event,
        )


def _sent(server: RedisServer) -> int:
    """Bytes that the server has sent to anybody."""
    line = next(line for line in server.text("INFO", "stats").splitlines() if "total_net_output_bytes" in line)
    return int(line.partition(":")[2])


def _chunks(writer: Replica, reader: Replica, which: str) -> float:
    name = "mfalcon_chunk_bytes_total" if which == "bytes" else "mfalcon_chunks_total"
    direction = "written" if which == "bytes" else which
    return sum(replica.counted(name, direction=direction) for replica in (writer, reader))

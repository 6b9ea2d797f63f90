"""The Redis tier: a KV state as chunks under one hash tag. Lives on the event loop.

A chunk is used only if it is whole and its hash is that of the history at its end, so chunks need no table of contents:
the state is the longest run of good ones from the first. A missing, torn or foreign chunk only shortens it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mfalcon.history.history import History
from mfalcon.kvcache.chunk import (
    HEADER_BYTES,
    ChunkHeader,
    ChunkLayout,
    ChunkRejected,
    is_finite,
    pack,
    unpack,
    unpack_header,
)
from mfalcon.kvcache.codec import decode, encode
from mfalcon.kvcache.item_rows import NO_TAGS, link_of
from mfalcon.kvcache.state import KVPool, KVState
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys

_WRITE = """
if ARGV[1] ~= '' and redis.call('GETRANGE', KEYS[1], 24, 31) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
local written = tonumber(redis.call('HGET', KEYS[3], ARGV[4]) or '0')
if tonumber(ARGV[5]) > written then redis.call('HSET', KEYS[3], ARGV[4], ARGV[5]) end
if ARGV[1] == '' then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
return 1
"""
"""KEYS: log, chunk, index. ARGV: the log's generation ('' for a log that is not here), chunk, ms to live, model, number
of chunks. Returns 0, and writes nothing, if the log has ended: a deletion cannot be undone by a write in flight.
"""

_TOUCH = """
if ARGV[2] == '0' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
for at = 2, #KEYS do
  if redis.call('PEXPIRE', KEYS[at], ARGV[1]) == 0 then return at - 2 end
end
return #KEYS - 1
"""
"""KEYS: index, chunks from the first on. ARGV: ms to live, whether the log is here too (1 or 0). Returns how many
chunks are there up to the first that is not. A command for each would cost the event loop a tenth of a millisecond and
more, whenever an event is added to a state of many chunks.
"""


_WRITTEN = """
return redis.call('TYPE', KEYS[1]).ok == 'hash' and redis.call('HGETALL', KEYS[1]) or {}
"""
"""KEYS: index. Returns models and numbers of chunks by turns; nothing where somebody has put something else."""


@dataclass(frozen=True, slots=True)
class RemoteOptions:
    """ttl_s: that a chunk lives after its last use. log_is_here: whether the event log is in the same Redis, so that
    writes can ask it. secret: of the chunks' MAC.
    """

    ttl_s: float
    log_is_here: bool
    secret: bytes | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Good chunks from the first on: payloads with their numbers of tokens, and the event where they stop."""

    payloads: tuple[tuple[memoryview, int], ...]
    stop: int


class RedisStates:
    """Reads and writes the chunks of one model. max_events: of a window."""

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        layout: ChunkLayout,
        max_events: int,
        options: RemoteOptions,
        metrics: StateMetrics,
    ) -> None:
        self.layout = layout
        self._client = client
        self._keys = keys
        self._metrics = metrics
        self._most_chunks = -(-max_events // layout.events_per_chunk)
        self._ttl_ms = round(options.ttl_s * 1000)
        self._log_is_here = options.log_is_here
        self._secret = options.secret
        # dtype and all dimensions are in the name: models of one checkpoint at two dtypes do not overwrite each other.
        self._model = hashlib.blake2b(repr(layout).encode(), digest_size=8).hexdigest()

    def available(self, user: bytes) -> bool:
        """False while the user's node is not tried."""
        return self._client.available(self._keys.log(user))

    def node(self, user: bytes) -> str:
        """The node that holds the user's chunks; one name for all where there is no cluster."""
        return self._client.node(self._keys.log(user))

    def chunk_key(self, user: bytes, number: int) -> str:
        """The name of a chunk in Redis."""
        return self._keys.chunk(user, self._model, number)

    def num_chunks(self, num_events: int) -> int:
        """Chunks of so many events."""
        return -(-num_events // self.layout.events_per_chunk)

    async def fetch(self, user: bytes, num_chunks: int, timeout_s: float) -> list[Reply]:
        """The first chunks as they are, None for a missing one. Raises StorageUnavailable."""
        # One command each, in one pipeline: a single MGET of megabytes would make other clients of the server wait. And
        # no more than a chunk and a byte: what is longer, of hundreds of megabytes perhaps, is none, and stays there.
        last = HEADER_BYTES + self.layout.payload_bytes(self.layout.events_per_chunk)
        commands: list[Command] = [("GETRANGE", self.chunk_key(user, i), 0, last) for i in range(num_chunks)]
        values = await self._client.call("chunks_read", self._keys.log(user), commands, timeout_s)
        return [value or None for value in values]

    async def stored(self, history: History, start: int, timeout_s: float, tags: bytes = NO_TAGS) -> tuple[int, int]:
        """Events of history[start:], encoded with item rows of these tags, that the first chunks say they hold, and the
        bytes of these chunks. Only heads travel, so their payloads are not proved; no chunk lives longer for it. Raises
        StorageUnavailable.
        """
        names = [self.chunk_key(history.user, i) for i in range(self.num_chunks(len(history) - start))]
        commands: list[Command] = []
        for name in names:
            commands += [("GETRANGE", name, 0, HEADER_BYTES - 1), ("STRLEN", name)]
        replies = await self._client.call("chunk_heads", self._keys.log(history.user), commands, timeout_s)
        stop, num_bytes = start, 0
        for head, size in zip(replies[::2], replies[1::2], strict=True):
            try:
                header = unpack_header(head, size, self.layout, history.user, keyed=self._secret is not None)
                _check(header, history, start, stop, tags)
            except ChunkRejected:
                break
            stop, num_bytes = header.stop, num_bytes + size
            if stop - header.first < self.layout.events_per_chunk:
                break
        return stop - start, num_bytes

    def verify(self, values: Sequence[Reply], history: History, start: int, tags: bytes = NO_TAGS) -> Run:
        """The run of good chunks for history[start:], made with item rows of these tags. Any thread may call it."""
        payloads: list[tuple[memoryview, int]] = []
        stop = start
        for value in values:
            if value is None:
                break
            try:
                header, payload = unpack(value, self.layout, history.user, self._secret)
                _check(header, history, start, stop, tags)
                if not is_finite(payload, self.layout):
                    raise ChunkRejected("finite")
            except ChunkRejected as error:
                self._metrics.rejected.labels(error.reason).inc()
                break
            payloads.append((payload, (header.stop - header.first) * self.layout.tokens_per_event))
            self._metrics.chunks.labels("read").inc()
            self._metrics.chunk_bytes.labels("read").inc(len(value))
            stop = header.stop
            if stop - header.first < self.layout.events_per_chunk:
                break
        return Run(tuple(payloads), stop)

    def state(self, run: Run, pool: KVPool) -> KVState:
        """A run as a state on pages of a pool. Any thread may call it. Raises Overloaded."""
        return decode(run.payloads, pool, self.layout.dtype)

    def pack(self, history: History, start: int, number: int, state: KVState, tags: bytes = NO_TAGS) -> bytes:
        """A chunk of the state of history[start:], made with item rows of these tags. Any thread may call it."""
        size, per_event = self.layout.events_per_chunk, self.layout.tokens_per_event
        first = start + number * size
        stop = min(first + size, len(history))
        payload = encode(state, (first - start) * per_event, (stop - start) * per_event, self.layout.dtype)
        header = ChunkHeader(self.layout, history.user, link_of(history, start, stop, tags), start, first, stop)
        return pack(header, payload, self._secret)

    async def write(self, history: History, number: int, chunk: bytes, timeout_s: float) -> bool:
        """Write one chunk; False if the user's log has ended. Raises StorageUnavailable."""
        log = self._keys.log(history.user)
        command = (
            *("EVAL", _WRITE, 3, log, self.chunk_key(history.user, number)),
            *(self._keys.index(history.user), history.generation if self._log_is_here else b""),
            *(chunk, self._ttl_ms, self._model, number + 1),
        )
        (written,) = await self._client.call("chunk_write", log, [command], timeout_s)
        if written:
            self._metrics.chunks.labels("written").inc()
            self._metrics.chunk_bytes.labels("written").inc(len(chunk))
        return bool(written)

    async def touch(self, user: bytes, num_chunks: int, timeout_s: float) -> int:
        """Let the first chunks live on; returns how many of them are there up to the first that is not. Raises
        StorageUnavailable.
        """
        if num_chunks:
            keys = [self._keys.index(user), *(self.chunk_key(user, i) for i in range(num_chunks))]
            command: Command = ("EVAL", _TOUCH, len(keys), *keys, self._ttl_ms, int(self._log_is_here))
            (alive,) = await self._client.call("touch", self._keys.log(user), [command], timeout_s)
            assert isinstance(alive, int)
            return alive
        return 0

    async def delete(self, user: bytes, timeout_s: float) -> None:
        """Delete the user's chunks, of every model. Raises StorageUnavailable."""
        index, log = self._keys.index(user), self._keys.log(user)
        (flat,) = await self._client.call("states_delete", log, [("EVAL", _WRITTEN, 1, index)], timeout_s)
        written = dict(zip(flat[::2], flat[1::2], strict=True))
        names = {self._keys.chunk(user, model.decode(), i) for model, n in written.items() for i in range(int(n))}
        names |= {self.chunk_key(user, i) for i in range(self._most_chunks)}  # if the index was evicted
        await self._client.call("states_delete", log, [("UNLINK", index, *names)], timeout_s)


def _check(header: ChunkHeader, history: History, start: int, first: int, tags: bytes) -> None:
    """Raise ChunkRejected unless the chunk is the next one of history[start:], made with item rows of these tags."""
    if header.start != start or header.first != first or header.stop > len(history):
        raise ChunkRejected("history")
    if header.link != link_of(history, start, header.stop, tags):
        raise ChunkRejected("history")

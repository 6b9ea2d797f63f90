"""Any bytes as the value of a user's log in Redis.

The first byte says what of it is made right behind the fuzzer's back: length, links, signature.
"""

import numpy as np

from mfalcon.errors import DamagedLog
from mfalcon.history.history import Retention, no_history
from mfalcon.history.redis_header import HEADER_BYTES, Headers
from mfalcon.history.redis_log import LogOptions, RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.types import EVENT_DTYPE
from tests.fuzz.loop import run
from tests.fuzz.redis_stub import ScriptedRedis
from tests.small import random_events

USER_ID = "eve"
SECRET = b"a secret of the operator"
RETENTION = Retention(max_events=100, slack=32)
EVENT = EVENT_DTYPE.itemsize
LENGTH, SIGNED, HASHED = 1, 2, 4


def seeds() -> list[bytes]:
    """Logs of some lengths, one that was cut, a tombstone, and one of the first format."""
    history = no_history(USER_ID, b"one life").extended(random_events(70))
    trimmed = history.trimmed(32)
    logs = []
    for number, some in enumerate((history, trimmed, no_history(USER_ID, b"one life").extended(random_events(1)))):
        for flags, headers in ((0, Headers()), (SIGNED, Headers(SECRET))):
            logs.append(bytes((flags | number,)) + headers.write(some, 1_000).raw + some.events.tobytes())
    tombstone = Headers().tombstone(history.user, b"one life", 7)
    header = Headers().write(history, 1_000).raw
    first = header[:4] + b"\1\0" + header[6:80]
    return [*logs, b"\0" + tombstone, b"\0" + first + history.events.tobytes()]


def reply_of(value: bytes, command: Command) -> Reply:
    """What `GUARD + READ` of mfalcon/history/redis_scripts.py replies with this value."""
    known, generation, known_len, most = command[4:8]
    header = value[:112]
    head = 80 if header[4:5] == b"\1" else 112
    header, told = header[:head], -1
    base = length = 0
    if len(header) == head and header[:4] == b"MFLG":
        base, length = (int.from_bytes(header[at : at + 8], "little", signed=False) for at in (8, 16))
        told = head + (length - base) * EVENT
        if base > length or len(value) < told:
            return [header, -2, b"truncated"]
    if len(value) > int(most) and (len(value) != told or len(value) > 33_554_432):
        return [header, -2, b"size"]
    if value and told == -1:
        return [header, -2, b"header"]
    if header == known:
        return [header, -1, b""]
    if len(header) != head:
        return [header, 0, b""]
    begin = base
    if header[24:32] == generation and base <= int(known_len) <= length:
        begin = int(known_len)
    return [header, begin, value[head + (begin - base) * EVENT : head + (length - base) * EVENT]]


def target(data: bytes) -> None:
    """Events that hash to their header's links, or DamagedLog; a second reader, who knows the log, sees the same."""
    if not data:
        return
    flags, value = data[0], data[1:]
    if flags & LENGTH and len(value) >= HEADER_BYTES:
        base = int.from_bytes(value[8:16], "little")
        length = (base + (len(value) - HEADER_BYTES) // EVENT) % 2**64
        value = value[:16] + length.to_bytes(8, "little") + value[24:]
    if flags & HASHED and len(value) >= HEADER_BYTES:
        events = np.frombuffer(value[HEADER_BYTES:][: (len(value) - HEADER_BYTES) // EVENT * EVENT], EVENT_DTYPE)
        history = no_history(USER_ID, b"one life").extended(events)
        value = Headers(SECRET if flags & SIGNED else None).write(history, 9).raw + events.tobytes()
    run(_read(value, SECRET if flags & SIGNED else None))


async def _read(value: bytes, secret: bytes | None) -> None:
    client = ScriptedRedis(lambda command: reply_of(value, command))
    log = RedisLog(client, Keys("fuzz"), RETENTION, StateMetrics(), LogOptions(secret=secret))
    try:
        reading = await log.read(USER_ID, 60)
    except DamagedLog:
        return
    history = reading.history
    assert len(history.events) <= len(value) // EVENT
    again = (await log.read(USER_ID, 60)).history
    assert again.version == history.version and again.events.tobytes() == history.events.tobytes()

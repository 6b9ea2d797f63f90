"""Any bytes where the item counters of Redis keep numbers, heads and changes. The first byte is what is asked."""

from mfalcon.counters.redis_records import CounterRecords, store_names
from mfalcon.errors import StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import no_history
from mfalcon.redis.client import Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from tests.fuzz.loop import run
from tests.fuzz.redis_stub import ScriptedRedis
from tests.small import random_events

LIKE = LikeRule(actions=2, value_at_least=None)
HISTORY = no_history("eve", b"one life").extended(random_events(40))


def seeds() -> list[bytes]:
    """Rows of items, a head, a change."""
    row = (7).to_bytes(8, "little") + b"".join(number.to_bytes(8, "little") for number in (3, 2, 1))
    head = b"one life" + (32).to_bytes(8, "little") + HISTORY.link(32)
    return [
        b"\0" + head,
        b"\1" + row * 3,
        b"\2" + row * 2,
        b"\3" + b"actions-2",
        b"\4" + head,
        b"\5" + row,
        b"\6" + row,
    ]


def target(data: bytes) -> None:
    """A result or StorageUnavailable."""
    if not data:
        return
    try:
        run(_ask(data[0] % 7, data[1:]))
    except StorageUnavailable:
        return


async def _ask(what: int, value: bytes) -> None:
    parts = value.split(b"\xff") or [b""]
    number = int.from_bytes(value[:8], "little")

    def answer(command: Command) -> Reply:
        replies: dict[int, Reply] = {
            0: value or None,
            1: [parts[0], number, [(b"%d-0" % number, [b"change", part]) for part in parts]],
            2: [number % 2, [each for part in parts for each in (part[:8], part[8:])]],
            3: parts,
            4: [b"at", number, value[8:]] if command[0] == "EVAL" else 1,
            5: [b"done", parts[0], number, value, 0] if command[0] == "EVAL" else 1,
            6: parts if command[0] == "HKEYS" else [b"done", b"", number, b"", 0] if command[0] == "EVAL" else 1,
        }
        return replies[what]

    client, keys = ScriptedRedis(answer), Keys("fuzz")
    records = CounterRecords(client, keys, "actions-2")
    match what:
        case 0:
            await records.stands(HISTORY.user, b"one life")
        case 1:
            await records.follow(0, 10)
        case 2:
            await records.scan(0, 10)
        case 3:
            await store_names(client, keys)
        case _:
            known = await CounterRecords(ScriptedRedis(lambda _: b""), keys, "a").stands(HISTORY.user, b"one life")
            if what == 6:
                await records.count_whole(HISTORY, known, LIKE)
            else:
                await records.count(HISTORY, known, LIKE)

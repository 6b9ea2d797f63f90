"""What Redis has in the place of counters and cannot be any is an error of its own, which says so."""

import pytest

from mfalcon.counters.redis_records import CounterRecords, DamagedCounters, store_names
from mfalcon.redis.client import Reply
from mfalcon.redis.keys import Keys
from tests.fuzz.redis_stub import ScriptedRedis

KEYS = Keys("fuzz")
ROW = (7).to_bytes(8, "little") * 4


def records(reply: Reply) -> CounterRecords:
    return CounterRecords(ScriptedRedis(lambda command: reply), KEYS, "actions-2")


@pytest.mark.parametrize(
    "reply",
    [[0, [ROW[:8], ROW[:23]]], [0, [ROW[:8]]], [0, [ROW[:7], ROW[:24]]], [0, [ROW[:16], ROW[:24]]], [b"?", []]],
    ids=["numbers cut", "no numbers", "item cut", "two items for one", "no cursor"],
)
async def test_damaged_items(reply: Reply) -> None:
    with pytest.raises(DamagedCounters, match="item counters is damaged"):
        await records(reply).scan(0, 10)
    assert (await records([0, [ROW[:8], ROW[8:]]]).scan(0, 10))[0] == 0


@pytest.mark.parametrize(
    "reply",
    [[b"", 1, [(b"1-0", [b"change", ROW[:9]])]], [b"", 1, [(b"1-0", [])]], [b"", b"x", []]],
    ids=["change cut", "no change", "no version"],
)
async def test_damaged_changes(reply: Reply) -> None:
    with pytest.raises(DamagedCounters, match="item counters is damaged"):
        await records(reply).follow(0, 10)


async def test_names_that_are_no_text() -> None:
    with pytest.raises(DamagedCounters, match="item counters is damaged"):
        await store_names(ScriptedRedis(lambda command: [b"\xff"]), KEYS)

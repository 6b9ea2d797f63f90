"""Who was counted for what, in Redis: a record for each user, changed by scripts together with the items' numbers.

A replica that dies between log and record leaves a record that stands behind its log; whoever meets that user next
counts the rest. A record moves only from the exact place that its writer knows, so nothing is counted twice.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from mfalcon.counters.increments import Increments, counted
from mfalcon.counters.redis_scripts import COUNT, FOLLOW, FORGET
from mfalcon.counters.standing import Insertion, Standing, standing_of
from mfalcon.errors import StorageUnavailable
from mfalcon.features.counters import LikeRule
from mfalcon.history.chain import LINK_BYTES
from mfalcon.history.history import History
from mfalcon.redis.client import RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys
from mfalcon.types import Ids, no_events

CALL_S = 0.25
"""Longest wait for one step: what was not counted by then is counted later."""
STREAM_ENTRIES = 8_192
_STEP = 512
"""Events, or items of a record, in one script: a few milliseconds of Redis."""
_MOST_AT_ONCE = 4_096
"""Items of an append that are counted by one script, because nobody else can complete it; Lua has a limit."""
_GONE_SECONDS = 3_600
_NO_LIFE = bytes(8)
"""The generation of no log."""
_MOST_SWEPT = 8
"""Steps of taking records out in one step of a sweep."""


class DamagedCounters(StorageUnavailable):
    """What lies in the place of counters, or of a record of them, is none."""


@contextmanager
def ours() -> Iterator[None]:
    """Raise DamagedCounters where what Redis gave cannot be what a replica put there."""
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise DamagedCounters(f"what Redis has in the place of the item counters is damaged: {error}") from error


def name_of(like: LikeRule) -> str:
    """Of a store: the same in every replica."""
    return f"actions-{like.actions}" if like.value_at_least is None else f"value-{like.value_at_least!r}"


@dataclass(frozen=True, slots=True)
class Change:
    """A step of the counters: items that have new numbers since `version`, whatever they had before.

    ids: [n]. numbers: int64 [n, 3].
    """

    version: int
    ids: Ids
    numbers: Ids

    @staticmethod
    def unpack(version: int, payload: bytes) -> "Change":
        """Of what a script tells."""
        rows = np.frombuffer(payload, dtype="<i8").reshape(-1, 4)
        return Change(version, np.ascontiguousarray(rows[:, 0]), rows[:, 1:])


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a record stands now; is_gone: its user has been deleted. epoch and change: what this step did, if any."""

    standing: Standing
    is_gone: bool = False
    epoch: bytes = b""
    change: Change | None = None
    left_out: int = 0


class CounterRecords:
    """The records and items of one store. Its methods raise StorageUnavailable. Lives on the event loop.

    name: see `name_of`.
    """

    def __init__(self, client: RedisClient, keys: Keys, name: str, max_items: int = 0) -> None:
        self._client = client
        self._keys = keys
        self._name = name
        self._max_items = max_items
        self._is_listed = False
        self.items_key = keys.counters(name, "items")

    async def stands(self, user: bytes, generation: bytes) -> Standing:
        """Up to where the events of a life are counted."""
        head = await self._head(user)
        if head[:8] != generation:
            return Standing(generation)
        return Standing(generation, int.from_bytes(head[8:16], "little"), head[16:])

    async def count(self, history: History, known: Standing, like: LikeRule) -> Outcome:
        """Count some more events of a history whose record is thought to stand at `known`, before its end.

        What the record says instead, if it stands elsewhere. A record of another life is taken out first, unless that
        is the one which the log has now.
        """
        begin = max(known.counted, history.base)
        until = min(begin + _STEP, len(history))
        added = counted(history.since(begin)[: until - begin], like)
        return await self._count(history.user, known, standing_of(history, until), added)

    async def count_inserted(self, insertion: Insertion, like: LikeRule) -> Outcome:
        """Count all of an append if the record stands where that began; what the record says if not."""
        added = counted(insertion.events, like)
        if len(added) > _MOST_AT_ONCE:
            return Outcome(await self.stands(insertion.user, insertion.before.generation))
        return await self._count(insertion.user, insertion.before, insertion.after, added)

    async def count_whole(self, history: History, known: Standing, like: LikeRule) -> list[Outcome]:
        """Have the record say what a history says from its first event on, if it stands at `known`; each step.

        Meanwhile it stands at a mark that is the link of no history: whoever meets it begins again, and whoever was
        overtaken stops.
        """
        mark = replace(known, link=os.urandom(LINK_BYTES))
        fence = await self._count(history.user, known, mark, counted(no_events(), like))
        done = [fence]
        if fence.standing != mark:
            return done
        whole = counted(history.events, like)
        fields: list[bytes] = await self._call([("HKEYS", self._record(history.user))])
        with ours():
            ids = np.frombuffer(
                b"".join(each for each in fields if len(each) == whole["item_id"].itemsize), dtype="<i8"
            )
        others = np.zeros(np.count_nonzero(~np.isin(ids, whole["item_id"])), dtype=whole.dtype)
        others["item_id"] = ids[~np.isin(ids, whole["item_id"])]
        every, end = np.concatenate([whole, others]), standing_of(history, len(history))
        for first in range(0, len(every), _STEP):
            after = end if first + _STEP >= len(every) else mark
            done.append(await self._count(history.user, mark, after, every[first : first + _STEP], how="whole"))
            if done[-1].standing != after:
                break
        return done

    async def _count(
        self, user: bytes, before: Standing, after: Standing, numbers: Increments, how: str = "more"
    ) -> Outcome:
        if not self._is_listed:  # for deletions by replicas that serve no such model
            await self._call([("SADD", self._keys.counter_names, self._name)], self._keys.counter_names)
            self._is_listed = True
        to = (after.counted, after.link)
        arguments = (before.counted, before.link, *to, how, numbers.tobytes())
        limits = (self._max_items, os.urandom(8), STREAM_ENTRIES)
        for _ in range(2):
            reply = await self._script(COUNT, user, before.generation, *arguments, *limits)
            match reply[0]:
                case b"done":
                    with ours():
                        change = Change.unpack(int(reply[2]), reply[3])
                        return Outcome(after, epoch=reply[1], change=change, left_out=int(reply[4]))
                case b"at":
                    with ours():
                        return Outcome(Standing(before.generation, int(reply[1]), reply[2]))
                case b"other":
                    if reply[1] == await self._generation(user):
                        return Outcome(before, is_gone=True)
                    await self._take_out(user, reply[1])
                case _:
                    return Outcome(before, is_gone=True)
        raise StorageUnavailable("the record of a user belongs to another life again and again")

    async def forget(self, user: bytes, generation: bytes) -> None:
        """Take out what was counted of lives that have ended, and let nothing of `generation` be counted any more."""
        await self._take_out(user, generation or _NO_LIFE)
        head = await self._head(user)
        if head and head[:8] != await self._generation(user):
            await self._take_out(user, head[:8])

    async def sweep(self, most: int, pause_s: float) -> int:
        """The next step of a sweep for records of lives that have ended unseen, because a log was lost or removed by
        hand: look at about `most` keys of Redis, and take out what is found. Returns how many records that were.

        Where the sweep stands is kept in Redis, so that it goes on whoever does the next step, and that is one replica
        in `pause_s`. A record that is too large for a step is gone on with in the next one.
        """
        turn = ("SET", self._key("sweep"), "", "NX", "PX", max(1, round(1e3 * pause_s)))
        if not await self._call([turn]):
            return 0
        at = await self._call([("HGET", self._key("state"), "sweep")]) or b"0"
        scanned = await self._call([("SCAN", at, "MATCH", f"{_escaped(self._record(b''))}*", "COUNT", most)])
        left, ended = _MOST_SWEPT, 0
        for key in scanned[1]:
            with suppress(StorageUnavailable, ValueError):  # a record that is damaged, or no record: the others go on
                user = bytes.fromhex(key.rpartition(b":")[2].decode())
                generation = (await self._head(user))[:8]  # before the log's: a record is never ahead of its log
                if not generation or generation == await self._generation(user):
                    continue
                is_left = True
                while is_left:
                    if not left:
                        return ended
                    is_left, left = await self._take_some(user, generation), left - 1
                ended += 1
        await self._call([("HSET", self._key("state"), "sweep", scanned[0])])
        return ended

    async def follow(self, version: int, most: int) -> tuple[bytes, int, list[Change]]:
        """Epoch, version now, and changes after a version, the oldest first."""
        keys = (self._key("state"), self._key("stream"))
        epoch, latest, entries = await self._call([("EVAL", FOLLOW, 2, *keys, version, most)])
        with ours():
            return epoch, int(latest), [Change.unpack(int(at.split(b"-")[0]), fields[1]) for at, fields in entries]

    async def num_items(self) -> int:
        """How many items have counters."""
        return int(await self._call([("HLEN", self.items_key)]))

    async def scan(self, cursor: int, most: int) -> tuple[int, Ids, Ids]:
        """Some items, ids [n] and numbers int64 [n, 3], from a cursor on; the next cursor, 0 at the end."""
        following, flat = await self._call([("HSCAN", self.items_key, cursor, "COUNT", most)])
        with ours():
            pairs = list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))
            ids = np.frombuffer(b"".join(item for item, _ in pairs), dtype="<i8")
            numbers = np.frombuffer(b"".join(raw for _, raw in pairs), dtype="<i8").reshape(len(ids), 3)
            return int(following), ids, numbers

    async def _take_out(self, user: bytes, generation: bytes) -> None:
        while await self._take_some(user, generation):
            pass

    async def _take_some(self, user: bytes, generation: bytes) -> bool:
        """Whether more is left."""
        reply = await self._script(FORGET, user, generation, _GONE_SECONDS, _STEP, os.urandom(8), STREAM_ENTRIES)
        return bool(reply[0] == b"more")

    async def _head(self, user: bytes) -> bytes:
        head: bytes | None = await self._call([("HGET", self._record(user), "head")])
        return head or b""

    async def _generation(self, user: bytes) -> bytes:
        """Of the log now; empty if there is none."""
        key = self._keys.log(user)
        generation: bytes = await self._call([("GETRANGE", key, 24, 31)], key)
        return generation

    async def _script(self, script: str, user: bytes, generation: bytes, *arguments: str | bytes | int) -> Reply:
        gone = self._key(f"gone:{generation.hex()}")
        keys = (self._key("state"), self.items_key, self._key("stream"), self._record(user), gone)
        return await self._call([("EVAL", script, len(keys), *keys, generation, *arguments)])

    async def _call(self, commands: list[Command], key: str | None = None) -> Reply:
        limit = min(CALL_S, self._client.settings.write_timeout_s)
        (reply,) = await self._client.call("counters", key or self.items_key, commands, limit)
        return reply

    def _record(self, user: bytes) -> str:
        return self._key(f"user:{user.hex()}")

    def _key(self, what: str) -> str:
        return self._keys.counters(self._name, what)


async def forget_in_others(
    client: RedisClient, keys: Keys, user: bytes, generation: bytes, names: Collection[str]
) -> None:
    """Take a user out of every store that there ever was but for `names`: no model here reads them.

    Raises StorageUnavailable.
    """
    for name in await store_names(client, keys):
        if name not in names:
            await CounterRecords(client, keys, name).forget(user, generation)


async def store_names(client: RedisClient, keys: Keys) -> list[str]:
    """Of every store that there ever was. Raises StorageUnavailable."""
    key = keys.counter_names
    (members,) = await client.call("counters", key, [("SMEMBERS", key)], client.settings.write_timeout_s)
    with ours():
        return sorted(member.decode() for member in members)


def _escaped(key: str) -> str:
    """A key as a pattern of itself."""
    return re.sub(r"([\\*?\[\]^])", r"\\\1", key)

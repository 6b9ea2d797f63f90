"""Retention by age of the logs in Redis: users who appended nothing for long enough are deleted, a few keys at a time.

One replica takes each step, whichever comes first, and where the sweep stands is kept in Redis: it goes on through
restarts of replicas and of Redis. A step looks at so many keys of one master. A log is ended only if its header is
still the one that was found, so an append in between keeps its user.
"""

import asyncio
import logging
import random
import re
import struct
import time
from collections.abc import Callable, Sequence

from mfalcon.errors import StorageUnavailable
from mfalcon.history.deletions import Deletion
from mfalcon.history.redis_header import clock_in, generation_in, is_log
from mfalcon.history.redis_log import RedisLog
from mfalcon.metrics.states import StateMetrics
from mfalcon.redis.client import RedisClient, Reply
from mfalcon.redis.command import Command
from mfalcon.redis.keys import Keys

_log = logging.getLogger(__name__)

STEP_S = 0.25
"""Between two steps, of all replicas together."""
STEP_KEYS = 256
"""That a step looks at, of whatever kind: some milliseconds of the event loop where all of them are logs."""
STEP_LOGS = 16
"""That a step deletes: the states and counters of each take calls of their own."""
_TIME = struct.Struct("<q")


class LogSweep:
    """Deletes logs whose last append is older than max_age_s; of a log of the first format, which does not tell that,
    whose last event is. on_expired: what ended, to be deleted everywhere else. Lives on the event loop.
    """

    def __init__(
        self,
        client: RedisClient,
        keys: Keys,
        log: RedisLog,
        max_age_s: float,
        on_expired: Callable[[Deletion], None],
        metrics: StateMetrics,
        *,
        step_s: float = STEP_S,
    ) -> None:
        self._client = client
        self._keys = keys
        self._log = log
        self._max_age_ms = round(1000 * max_age_s)
        self._on_expired = on_expired
        self._metrics = metrics
        self._step_s = step_s
        self._pattern = re.sub(r"([\\*?\[\]^])", r"\\\1", keys.prefix) + ":{*}:log"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. On the event loop."""
        self._task = asyncio.create_task(self._keep_sweeping(), name="log-sweep")

    async def close(self) -> None:
        """End within a step."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def step(self) -> int:
        """Look at some more keys of a master, if no replica has just done so. Returns how many logs were ended.

        Raises StorageUnavailable.
        """
        key, patience_s = self._keys.sweep("turn"), self._client.settings.write_timeout_s
        turn: Command = ("SET", key, "", "NX", "PX", max(1, round(1000 * self._step_s)))
        (is_ours,) = await self._client.call("log_sweep", key, [turn], patience_s)
        if not is_ours:
            return 0
        node, cursors = random.choice(await self._client.nodes()), self._keys.sweep("cursors")
        (at,) = await self._client.call("log_sweep", cursors, [("HGET", cursors, node)], patience_s)
        scan: Command = ("SCAN", at or 0, "MATCH", self._pattern, "COUNT", STEP_KEYS, "TYPE", "string")
        ((following, names),) = await self._client.call_node("log_sweep", node, [scan], patience_s)
        old = await self._old_ones(node, names, patience_s)
        for name, header in old[:STEP_LOGS]:
            user = bytes.fromhex(name.decode().rpartition("{")[2].partition("}")[0])
            if await self._log.expire(user, header):
                self._metrics.log_expired.inc()
                self._on_expired(Deletion(user, generation_in(header)))
        if len(old) <= STEP_LOGS:  # else the same keys again: what was ended is no longer old
            change: Command = ("HSET", cursors, node, following)
            await self._client.call("log_sweep", cursors, [change], patience_s)
        self._metrics.log_swept.inc(len(names))
        return min(len(old), STEP_LOGS)

    async def _old_ones(self, node: str, names: Sequence[bytes], patience_s: float) -> list[tuple[bytes, bytes]]:
        """Keys and headers of the logs among these that are older than they may be."""
        if not names:
            return []
        parts: list[Command] = [
            command for name in names for command in (("GETRANGE", name, 0, 111), ("GETRANGE", name, -8, -1))
        ]
        replies: list[Reply] = await self._client.call_node("log_sweep", node, parts, patience_s)
        oldest = time.time_ns() // 10**6 - self._max_age_ms
        return [
            (name, header)
            for name, header, last in zip(names, replies[::2], replies[1::2], strict=True)
            if is_log(header) and (clock_in(header) or _TIME.unpack(last)[0]) < oldest
        ]

    async def _keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(self._step_s)
            try:
                await self.step()
            except StorageUnavailable as error:
                _log.debug("sweeping logs: %s", error)
            except Exception:  # noqa: BLE001 (the task's edge: without it logs would stay for ever)
                _log.exception("sweeping logs failed")

"""Calls of event logs as their callers see them, written down as operations."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from typing import TypeVar

import numpy as np

from loadtest.faults.recording import Operation
from mfalcon.engine.histories import Histories
from mfalcon.errors import HistoryMismatch, MFalconError, StorageUnavailable
from mfalcon.types import EVENT_DTYPE, Append, Events

T = TypeVar("T")

_PATIENCE_S = 30.0


class Recorder:
    """What is asked of any replica through it is recorded, on the clock of `time.monotonic()`."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.lost_events = 0
        """That appends were told of."""
        self._items = count(1)

    def events(self, number: int, time_ms: int) -> Events:
        """Events that nobody else sends."""
        events = np.zeros(number, dtype=EVENT_DTYPE)
        events["item_id"], events["time_ms"] = [next(self._items) for _ in range(number)], time_ms
        return events

    async def append(self, replica: Histories, user: str, append: Append, timeout_s: float) -> Operation:
        """Ask a replica to append. A caller that has waited for `timeout_s` leaves, and knows nothing."""
        asked = Operation(
            "append",
            user,
            time.monotonic(),
            events=append.events,
            expected_len=append.expected_len,
            expected_version=append.expected_version,
            append_id=append.append_id,
            late=append.late_events or "reject",  # type: ignore[arg-type]
        )
        try:
            async with asyncio.timeout(timeout_s):
                told = await replica.append(user, append, asked.began + timeout_s)
        except HistoryMismatch as error:
            version = bytes.fromhex(error.version_hex)
            return self._ended(asked, "refused", length=error.history_len, version=version)
        except (MFalconError, TimeoutError) as error:
            return self._failed(asked, error)
        self.lost_events += told.lost_events
        return self._ended(
            asked,
            events=np.delete(append.events, told.discarded),
            length=told.history_len,
            version=told.version,
            was_written=told.was_written,
        )

    async def read(self, replica: Histories, user: str, timeout_s: float) -> Operation | None:
        """Ask a replica for the whole history; None if it could not tell."""
        asked = Operation("read", user, time.monotonic())
        try:
            async with asyncio.timeout(timeout_s):
                reading = await replica.log.read(user, timeout_s)
        except (MFalconError, TimeoutError):
            return None
        history = reading.history
        assert not history.base, "a trimmed history cannot be judged"
        return self._ended(
            asked, events=history.events, length=len(history), version=history.version, stale=reading.stale
        )

    async def delete(self, replica: Histories, user: str, timeout_s: float) -> Operation:
        """Ask a replica to delete a user."""
        asked = Operation("delete", user, time.monotonic())
        try:
            async with asyncio.timeout(timeout_s):
                await replica.log.delete(user, asked.began + timeout_s)
        except (MFalconError, TimeoutError) as error:
            return self._failed(asked, error)
        return self._ended(asked)

    def _failed(self, asked: Operation, error: Exception) -> Operation:
        if isinstance(error, TimeoutError) or (isinstance(error, MFalconError) and error.may_be_done):
            operation = replace(asked, outcome="unknown")
            self.operations.append(operation)
            return operation
        return self._ended(asked, "refused")

    def _ended(self, asked: Operation, outcome: str = "ok", **told: object) -> Operation:
        operation = replace(asked, ended=time.monotonic(), outcome=outcome, **told)  # type: ignore[arg-type]
        self.operations.append(operation)
        return operation


async def keeps_append_ids(replica: Histories) -> bool:
    """Whether the log of a replica knows a repeated append by its id; leaves nothing behind. A Redis that is slow is
    asked again, for half a minute.
    """
    append = Append(np.ones(1, dtype=EVENT_DTYPE), append_id="a")
    told = [await _at_last(lambda: replica.append("keeps-append-ids", append, None)) for _ in range(2)]
    await _at_last(lambda: replica.log.delete("keeps-append-ids", None))
    return told[1].was_written


async def _at_last(call: Callable[[], Awaitable[T]]) -> T:
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await call()
        except StorageUnavailable:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.1)

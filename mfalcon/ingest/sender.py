"""Appends to a server, many users at a time, until each is in the log or refused for good."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mfalcon.errors import CallFailed
from mfalcon.ingest.windows import Part, one_by_one
from mfalcon_client import (
    AccessDenied,
    Append,
    Appended,
    AsyncClient,
    ClientError,
    InvalidArgument,
    NotFound,
    VersionConflict,
)

FIRST_WAIT_S, MOST_WAIT_S = 0.05, 2.0
_FOR_GOOD = (InvalidArgument, NotFound, VersionConflict)
"""What is refused so is refused again."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How appends are sent. num_appends, num_events: of a call, at most; the server has bounds of its own. in_flight:
    calls at once. patience_s: how long an append may find no server, or no room, before all is given up.
    """

    num_appends: int = 1_000
    num_events: int = 10_000
    in_flight: int = 2
    patience_s: float = 300.0
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Refused:
    """An append that the server will never take, of one event."""

    part: Part
    why: str


class Sender:
    """Sends the appends of windows to one server, or to several as one."""

    def __init__(self, client: AsyncClient, pace: Pace) -> None:
        self._client = client
        self._pace = pace
        self._room = asyncio.Semaphore(pace.in_flight)
        self.num_discarded = 0
        """Events that came so late that the server keeps none as old."""
        self.num_found = 0
        """Events that were in the log: they had been sent before."""

    async def send(self, parts: Sequence[Part]) -> list[Refused]:
        """Return when every event is in the log, but for those that are refused for good, whatever else is wrong with
        their append. The appends of a user are done in their order. Raises CallFailed.
        """
        of_users: dict[str, list[Part]] = {}
        for part in parts:
            of_users.setdefault(part.append.user_id, []).append(part)
        refused: list[Refused] = []
        for turn in zip_longest(*of_users.values()):  # no call may name a user twice
            failed = await self._turn([part for part in turn if part is not None])
            single = [each for each in failed if len(each.part.places) == 1]
            several = [each.part for each in failed if len(each.part.places) > 1]
            refused += single
            if several:
                refused += await self.send([each for part in several for each in one_by_one(part)])
        return refused

    async def _turn(self, parts: Sequence[Part]) -> list[Refused]:
        """One append of each user."""
        try:
            async with asyncio.TaskGroup() as group:
                sending = [group.create_task(self._insist(batch)) for batch in self._batches(parts)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [each for task in sending for each in task.result()]

    def _batches(self, parts: Sequence[Part]) -> list[list[Part]]:
        batches: list[list[Part]] = []
        num_events = 0
        for part in parts:
            num_events += len(part.places)
            if not batches or len(batches[-1]) == self._pace.num_appends or num_events > self._pace.num_events:
                batches.append([])
                num_events = len(part.places)
            batches[-1].append(part)
        return batches

    async def _insist(self, batch: list[Part]) -> list[Refused]:
        """Until each is done or refused for good."""
        refused: list[Refused] = []
        give_up, wait_s = time.monotonic() + self._pace.patience_s, FIRST_WAIT_S
        while True:
            async with self._room:
                outcomes = await self._ask(batch)
            left: list[Part] = []
            last: ClientError | None = None
            for part, outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Appended):
                    self.num_discarded += len(outcome.discarded)
                    self.num_found += len(part.places) if outcome.was_found else 0
                elif isinstance(outcome, _FOR_GOOD) or outcome.code == "DATA_LOSS":
                    refused.append(Refused(part, str(outcome)))
                else:
                    left.append(part)
                    last = outcome
            if last is None:
                return refused
            if isinstance(last, AccessDenied) or time.monotonic() > give_up:
                raise CallFailed(last.code, last.details)
            batch = left
            await asyncio.sleep(wait_s * random.uniform(0.5, 1))
            wait_s = min(MOST_WAIT_S, 2 * wait_s)

    async def _ask(self, batch: Sequence[Part]) -> Sequence[Appended | ClientError]:
        """What became of each; the same for all if the whole call failed."""
        appends = [
            Append(
                part.append.user_id,
                part.append.append.events,
                append_id=part.append.append.append_id,
                late_events=part.append.append.late_events,
            )
            for part in batch
        ]
        try:
            return await self._client.append_batch(appends, timeout_s=self._pace.timeout_s)
        except InvalidArgument as error:  # of the call itself: its bounds are not the server's
            raise CallFailed(error.code, error.details) from error
        except ClientError as error:
            return [error] * len(batch)

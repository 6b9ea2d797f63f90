"""Sends classes of requests at their intended times and writes down what becomes of each.

Open loop: a request leaves at its time whatever became of the ones before, and its latency counts from that time, so
that neither a stalled server nor a stalled driver hides the requests which waited for it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from loadtest.load.ledger import GRACE_S, Ledger, Outcome
from loadtest.load.own_users import OwnUsers
from loadtest.load.prepare import Prepared
from loadtest.load.target import Scored, Target
from loadtest.load.traffic import Traffic, poisson_arrivals
from mfalcon.errors import CallFailed

BOUND = 1e-5
"""Worst float32 score difference that still counts as equal."""
_REFUSED_PAUSE_S = 0.1
"""What a client of a closed loop waits after anything but scores, so that refusals do not make it a flood."""
_CANCEL_WITHIN_S = 1.0
"""Where there is no deadline, a client that cancels does so within this time."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A class, what it asks, and the ledger of one run. checks: whether scores are held against the oracle's."""

    traffic: Traffic
    prepared: Sequence[Prepared]
    checks: bool
    ledger: Ledger = field(default_factory=Ledger)

    def in_time(self) -> list[float]:
        """When the answers came that were right and within the deadline."""
        return [
            entry.ended for entry in self.ledger if entry.ended is not None and entry.in_time(self.traffic.within_s)
        ]


@dataclass(frozen=True, slots=True)
class Limits:
    """patience_s: what a client waits beyond the deadline before it gives up. in_flight: of all requests at once."""

    patience_s: float = 1.0
    patience_without_deadline_s: float = 60.0
    in_flight: int = 10_000


class _Planned(NamedTuple):
    """A request of an open loop. offset: seconds from the run's begin. user_id: the prepared one's, or a new one's."""

    offset: float
    prepared: Prepared
    user_id: str


class Driver:
    """One run of some streams side by side."""

    def __init__(self, target: Target, users: OwnUsers, limits: Limits, rng: np.random.Generator) -> None:
        self._target = target
        self._users = users
        self._limits = limits
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self.in_flight = 0

    async def run(self, streams: Sequence[Stream], seconds: float, stop: asyncio.Event) -> float:
        """Send until the time is up or `stop` is set, wait for what is under way; the seconds of sending.

        Users of cold requests in an open loop are made before and deleted after it; raises CallFailed if they cannot.
        """
        plans = [(stream, await self._plan(stream, seconds)) for stream in streams if stream.traffic.rate]
        began = self._loop.time()
        async with asyncio.TaskGroup() as group:
            for stream, plan in plans:
                group.create_task(self._open(stream, plan, began, stop))
            for stream in streams:
                for number in range(stream.traffic.clients):
                    group.create_task(self._client(stream, number, began + seconds, stop))
            await _set_before(stop, began + seconds)
            took = min(self._loop.time() - began, seconds)
        for user_id in (one.user_id for _, plan in plans for one in plan if one.user_id != one.prepared.user_id):
            await self._users.delete(user_id)
        return took

    async def _plan(self, stream: Stream, seconds: float) -> list[_Planned]:
        """What an open loop asks at which times; the new users of cold requests are made here."""
        planned = []
        for turn, offset in enumerate(poisson_arrivals(stream.traffic.rate, seconds, self._rng).tolist()):
            prepared = stream.prepared[turn % len(stream.prepared)]
            cold = self._rng.random() < stream.traffic.cold_share
            user_id = await self._users.create(prepared.append_bodies) if cold else prepared.user_id
            planned.append(_Planned(offset, prepared, user_id))
        return planned

    async def _open(self, stream: Stream, plan: list[_Planned], began: float, stop: asyncio.Event) -> None:
        """Each request at its time; one that the driver comes late to is sent at once."""
        async with asyncio.TaskGroup() as group:
            for one in plan:
                if await _set_before(stop, began + one.offset):
                    return
                group.create_task(self._ask(stream, one.prepared, one.user_id, began + one.offset))

    async def _client(self, stream: Stream, number: int, end: float, stop: asyncio.Event) -> None:
        """One request after the other, each with the user whose turn it is."""
        turn, step = number, stream.traffic.clients
        while self._loop.time() < end and not stop.is_set():
            prepared = stream.prepared[turn % len(stream.prepared)]
            turn += step
            if self._rng.random() < stream.traffic.cold_share:
                right = await self._ask_for_new_user(stream, prepared)
            else:
                right = await self._ask(stream, prepared, prepared.user_id, self._loop.time())
            pause_s = max(stream.traffic.pause_ms / 1e3, 0 if right else _REFUSED_PAUSE_S)
            if pause_s and await _set_before(stop, min(self._loop.time() + pause_s, end)):
                return

    async def _ask_for_new_user(self, stream: Stream, prepared: Prepared) -> bool:
        try:
            user_id = await self._users.create(prepared.append_bodies)
        except CallFailed as error:
            number = stream.ledger.issue(self._loop.time())
            stream.ledger.settle(number, Outcome.ERROR, self._loop.time(), f"append: {error.code}")
            return False
        right = await self._ask(stream, prepared, user_id, self._loop.time())
        await self._users.delete(user_id)
        return right

    async def _ask(self, stream: Stream, prepared: Prepared, user_id: str, intended: float) -> bool:
        """One request from its intended time to its entry in the ledger; True if it is right."""
        ledger, traffic, now = stream.ledger, stream.traffic, self._loop.time()
        number = ledger.issue(intended)
        due = intended + traffic.deadline_ms / 1e3 if traffic.deadline_ms else None
        if self.in_flight >= self._limits.in_flight or (due is not None and now >= due):
            ledger.settle(number, Outcome.UNSENT, now)
            return False
        cancel_at = self._cancel_at(traffic, now)
        give_up = due + self._limits.patience_s if due else now + self._limits.patience_without_deadline_s
        ledger.sent(number, now)
        self.in_flight += 1
        code = ""
        try:
            async with asyncio.timeout_at(min(give_up, cancel_at)):
                answer = await self._target.rank(user_id, prepared.rank_body, due and due - now)
        except TimeoutError:
            outcome = Outcome.CANCELLED if cancel_at <= give_up else Outcome.NEVER
        except CallFailed as error:
            outcome, code = Outcome.ERROR, error.code
        else:
            outcome = self._judge(stream, prepared, answer)
        finally:
            self.in_flight -= 1
        ended = self._loop.time()
        answered = outcome in (Outcome.RIGHT, Outcome.ERROR)
        if answered and due is not None and ended > due + GRACE_S:
            outcome = Outcome.LATE
        ledger.settle(number, outcome, ended, code)
        return outcome is Outcome.RIGHT

    def _judge(self, stream: Stream, prepared: Prepared, answer: Scored) -> Outcome:
        ledger = stream.ledger
        ledger.num_encoded += answer.num_encoded > 0
        if len(answer.scores) != stream.traffic.candidates or not answer.is_finite:
            return Outcome.WRONG
        if not stream.checks:
            return Outcome.RIGHT
        gap = prepared.gap(answer.scores)
        ledger.num_checked += 1
        ledger.worst_gap = max(ledger.worst_gap, gap)
        return Outcome.RIGHT if gap <= BOUND else Outcome.WRONG

    def _cancel_at(self, traffic: Traffic, now: float) -> float:
        """When its client cancels a request, if at all."""
        if not traffic.cancel_share or self._rng.random() >= traffic.cancel_share:
            return float("inf")
        within = traffic.deadline_ms / 1e3 if traffic.deadline_ms else _CANCEL_WITHIN_S
        return now + self._rng.uniform(0, within)


async def _set_before(stop: asyncio.Event, when: float) -> bool:
    """Wait until then, or until it is set."""
    try:
        async with asyncio.timeout_at(when):
            await stop.wait()
    except TimeoutError:
        pass
    return stop.is_set()

"""Plays what users do on a simulated fleet: at its times, or as fast as some clients get through it."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event, Resource

from loadtest.scale.acts import Act
from loadtest.scale.fleet import SimFleet
from loadtest.scale.thread import Doing


class Player:
    """histories: [num_users] events that users come with; of a user beyond its end, none.

    An append is acknowledged before the user's next visit begins.
    """

    def __init__(self, env: Environment, fleet: SimFleet, deadline_s: float, histories: NDArray[np.int64]) -> None:
        self._env = env
        self._fleet = fleet
        self._deadline_s = deadline_s
        self._lengths: dict[int, int] = {}
        self._histories = histories
        self.asked = 0

    def open(self, acts: Iterable[Act]) -> Doing:
        """Each act at its time, whatever became of the ones before."""
        for act in acts:
            if act.time_s > self._env.now:
                yield self._env.timeout(act.time_s - self._env.now)
            self._env.process(self._do(act))

    def closed(self, acts: Iterable[Act], clients: int) -> Doing:
        """In their order, at most `clients` at once, those of one user one after the other. As `replay` plays a trace
        on engines.
        """
        slots = Resource(self._env, clients)
        latest: dict[int, Event] = {}
        for act in acts:
            slot = slots.request()
            yield slot
            latest[act.user] = self._env.process(self._in_turn(act, latest.get(act.user), slots, slot))
        yield self._env.all_of(latest.values())

    def _in_turn(self, act: Act, before: Event | None, slots: Resource, slot: Event) -> Doing:
        if before is not None and not before.processed:
            yield before
        yield from self._do(act)
        slots.release(slot)  # type: ignore[arg-type]  # a Request is an Event

    def _do(self, act: Act) -> Doing:
        had = self._lengths.get(act.user)
        if had is None:
            had = int(self._histories[act.user]) if act.user < len(self._histories) else 0
        self._lengths[act.user] = length = had + act.added
        if act.candidates:
            self.asked += 1
            yield from self._fleet.rank(act.user, length, act.candidates, self._deadline_s)
        else:
            yield from self._fleet.append(act.user, act.added)

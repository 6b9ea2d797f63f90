"""A thread that does one thing after the other: an event loop, Redis, the process that asks."""

from collections.abc import Generator

from simpy import Environment, Event, Resource

from loadtest.scale.cores import Cores

Doing = Generator[Event, None, None]
"""What a process of the simulation yields."""


class Thread:
    """Its work waits for its turn, then for the cores."""

    def __init__(self, env: Environment, cores: Cores) -> None:
        self._turns = Resource(env)
        self._cores = cores

    def run(self, seconds: float) -> Doing:
        """Until so many core seconds are spent; nothing waits for nothing."""
        if seconds > 0:
            with self._turns.request() as turn:
                yield turn
                yield self._cores.run(seconds)

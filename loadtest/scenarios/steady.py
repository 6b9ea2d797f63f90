"""Steady: the same clients from beginning to end, users by Zipf's law, all of whose states are kept."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class Steady(Constant):
    """The same clients all the time."""


class SteadyClient(ScenarioClient):
    """Ranks, twice a second."""

    @locust.task
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

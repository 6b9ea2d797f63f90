"""Spike: in the middle fifth of the time there are six times as many clients."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Shape


class Spike(Shape):
    """One level, six levels, one level."""

    def level(self, share: float) -> float:
        """6 from .4 to .6."""
        return 6.0 if 0.4 <= share < 0.6 else 1.0


class SpikeClient(ScenarioClient):
    """Ranks, twice a second."""

    @locust.task
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

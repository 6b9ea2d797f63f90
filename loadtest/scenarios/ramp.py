"""Ramp to saturation: from one client to eight times `--clients`, each asking twice a second while it is answered."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Shape

_MOST = 8


class Ramp(Shape):
    """Clients in proportion to the time."""

    def level(self, share: float) -> float:
        """From 0 to 8."""
        return _MOST * share


class RampClient(ScenarioClient):
    """Ranks, twice a second."""

    @locust.task
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

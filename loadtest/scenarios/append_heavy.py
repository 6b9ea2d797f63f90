"""Append-heavy: two appends for each rank, so that nearly every rank has events to encode."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class AppendHeavy(Constant):
    """The same clients all the time."""


class AppendingClient(ScenarioClient):
    """Two appends of 1 to 5 events, and a rank for one of the same users."""

    @locust.task(2)
    def act(self) -> None:
        """Append to a user's history."""
        self.append(self.population.draw(self.rng), int(self.rng.integers(1, 6)))

    @locust.task(1)
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

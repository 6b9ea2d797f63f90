"""Cache thrash: the states of all users take more than the block pool holds, and each user is as likely as another.

Give the server a small `--kv-budget-mb`; where it has Redis, states come from there.
"""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class CacheThrash(Constant):
    """The same clients all the time."""


class ThrashingClient(ScenarioClient):
    """Ranks, twice a second; run with `--zipf 0`."""

    @locust.task
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

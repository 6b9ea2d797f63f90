"""Hot user: half of all requests are for one user, who also acts; behind a balancer the others must not suffer."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class HotUser(Constant):
    """The same clients all the time."""


class HotClient(ScenarioClient):
    """Ranks for the hot user and for others, named apart."""

    @locust.task(10)
    def ask_for_hot(self) -> None:
        """Rank for the one."""
        self.rank(self.population.first, name="Rank, hot user")

    @locust.task(10)
    def ask_for_others(self) -> None:
        """Rank for another."""
        self.rank(self.population.draw(self.rng), name="Rank, others")

    @locust.task(1)
    def act(self) -> None:
        """An event of the one."""
        self.append(self.population.first)

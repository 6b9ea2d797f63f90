"""Cold start: every user is new, so that every history has to be encoded, as after a deploy without Redis."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class ColdStart(Constant):
    """The same clients all the time."""


class ColdClient(ScenarioClient):
    """Appends a history and ranks once, for one new user after the other."""

    warm = False

    @locust.task
    def ask(self) -> None:
        """Rank for a user who has just come."""
        user_id = self.population.new()
        self.append_history(user_id)
        self.rank(user_id)

"""Mixed: what a day is like: 90% ranks, 9% appends, 1% prefills, by users of Zipf's law, one in twenty of them new."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant


class Mixed(Constant):
    """The same clients all the time."""


class MixedTasks(ScenarioClient):
    """Everything, twice a second."""

    abstract = True

    @locust.task(86)
    def ask(self) -> None:
        """Rank for a user."""
        self.rank(self.population.draw(self.rng))

    @locust.task(4)
    def ask_for_new(self) -> None:
        """Rank for one who has just come."""
        user_id = self.population.new()
        self.append_history(user_id)
        self.rank(user_id, name="Rank, new user")

    @locust.task(9)
    def act(self) -> None:
        """Append to a user's history."""
        self.append(self.population.draw(self.rng), int(self.rng.integers(1, 6)))

    @locust.task(1)
    def encode(self) -> None:
        """Encode a history ahead."""
        self.prefill(self.population.draw(self.rng))


class MixedClient(MixedTasks):
    """A client of that."""

"""Repeat visits: users come back, look at several pages, and act in between, as in `mfalcon bench replay`.

Each client plays a trace of its own users, one step after the other, without the pauses between them.
"""

from collections.abc import Iterator

import locust
import locust.env

from loadtest.load.trace import Append, Rank, Step, TraceOptions, trace
from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant

_USERS_OF_A_CLIENT = 20
_LONGEST = 100_000


class RepeatVisits(Constant):
    """The same clients all the time."""


class VisitingClient(ScenarioClient):
    """Plays its trace."""

    def __init__(self, environment: locust.env.Environment) -> None:
        super().__init__(environment)
        self._users = [self.population.new() for _ in range(_USERS_OF_A_CLIENT)]
        options = TraceOptions(
            num_users=_USERS_OF_A_CLIENT,
            num_requests=_LONGEST,
            num_items=self.options.num_items,
            seed=int(self.rng.integers(1 << 31)),
        )
        self._steps: Iterator[Step] = trace(options)

    @locust.task
    def step(self) -> None:
        """The next rank or append of the trace; its deletions and edits are left out."""
        match next(self._steps):
            case Rank(user=user):
                self.rank(self._users[user])
            case Append(user=user, events=events):
                self.append(self._users[user], len(events))
            case _:
                pass

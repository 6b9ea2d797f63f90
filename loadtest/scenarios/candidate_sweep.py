"""Candidate sweep: ranks of 100 to 16,384 candidates, one size after the other, each under a name of its own."""

import locust

from loadtest.scenarios.client import ScenarioClient
from loadtest.scenarios.shape import Constant

SIZES = (100, 256, 1_000, 4_096, 16_384)


class CandidateSweep(Constant):
    """The same clients all the time."""


class SweepingClient(ScenarioClient):
    """Ranks of all sizes in turns, so that each meets the same neighbours."""

    turn = 0

    @locust.task
    def ask(self) -> None:
        """Rank the next size."""
        self.turn += 1
        size = SIZES[self.turn % len(SIZES)]
        self.rank(self.population.draw(self.rng), size, f"Rank, m={size:,}")

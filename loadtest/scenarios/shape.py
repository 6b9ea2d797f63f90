"""How many clients there are over a scenario's time, as a function of the share of it that has passed."""

import time
from abc import abstractmethod
from typing import ClassVar

import locust


class Shape(locust.LoadTestShape):
    """Clients by `level`, which a scenario defines; ends when its time is up.

    began: when the users were there that clients ask for, None before. Until then nothing may change: Locust would
    begin its start anew, again and again.
    """

    abstract = True
    began: ClassVar[float | None] = None

    @abstractmethod
    def level(self, share: float) -> float:
        """Clients in multiples of `--clients`. share: from 0 to 1."""

    def tick(self) -> tuple[int, float] | None:
        """Clients now, and how many may come or go a second. None at the end."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        share = 0.0 if Shape.began is None else (time.perf_counter() - Shape.began) / options.scenario_seconds
        if share >= 1:
            return None
        return max(1, round(options.clients * self.level(share))), float(options.clients)


class Constant(Shape):
    """The same clients from beginning to end."""

    abstract = True

    def level(self, share: float) -> float:
        """One."""
        return 1.0

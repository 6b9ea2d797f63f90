"""Classes of requests that a load sends side by side, each with a size, a deadline, and a rate or some clients."""

from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from mfalcon.errors import ConfigError

MAX_RATE = 100_000
MAX_REQUESTS = 1_000_000
"""The most requests of one class in one run: all of them are kept until its end."""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Traffic:
    """One class of requests.

    rate: requests a second in an open loop, sent at the times of a Poisson process whatever became of the ones before.
    clients: those of a closed loop, of whom each sends its next request when the last has ended; one of the two is 0.
    deadline_ms: from the intended time on; 0 for none. users: who have a history of so many events and are asked for
    in turns; 0 for as many as clients, or 32. cold_share: of the requests, each for a new user instead, of whom no
    state is kept; the history is appended just before the request, in an open loop before the run. cancel_share: of
    the requests, which their client cancels after a random part of the deadline. pause_ms: a client's, after each of
    its requests.
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,40}$")] = "main"
    rate: Annotated[float, Field(ge=0, le=MAX_RATE)] = 0.0
    clients: Annotated[int, Field(ge=0, le=1_000)] = 0
    candidates: Annotated[int, Field(ge=1, le=1_000_000)] = 500
    deadline_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 1_000
    users: Annotated[int, Field(ge=0, le=10_000)] = 0
    history: Annotated[int, Field(ge=0, le=100_000)] = 256
    cold_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    cancel_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    pause_ms: Annotated[int, Field(ge=0, le=3_600_000)] = 0

    @property
    def num_users(self) -> int:
        """Users to prepare."""
        return self.users or self.clients or 32

    @property
    def within_s(self) -> float:
        """The deadline in seconds, without bound if there is none."""
        return self.deadline_ms / 1e3 or float("inf")

    @model_validator(mode="after")
    def _one_loop(self) -> Self:
        if (self.rate > 0) == (self.clients > 0):
            raise ValueError("give either a rate or a number of clients")
        if self.pause_ms and self.rate > 0:
            raise ValueError("a pause goes with clients")
        return self


def parse_traffic(text: str) -> Traffic:
    """A class from `name=big,clients=2,candidates=16384`. Raises ConfigError."""
    pairs = [part.partition("=") for part in text.split(",")]
    return traffic_of({name.strip().replace("-", "_"): value.strip() for name, _, value in pairs})


def traffic_of(given: Mapping[str, object]) -> Traffic:
    """A class from its fields, or from texts of them. Raises ConfigError."""
    try:
        return TypeAdapter(Traffic).validate_python(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "a class of requests"
        raise ConfigError(f"{where}: got {str(first['input'])[:80]}: {first['msg']}") from None


def highest_rate(seconds: float) -> float:
    """The most requests a second of which a run can be kept."""
    return min(MAX_RATE, MAX_REQUESTS / seconds)


def poisson_arrivals(rate: float, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Ascending times in seconds of a Poisson process."""
    times = np.empty(0)
    while len(times) == 0 or times[-1] < seconds:
        gaps = rng.exponential(1 / rate, size=int(rate * seconds) + 16)
        times = np.concatenate([times, gaps.cumsum() + (times[-1] if len(times) else 0.0)])
    return times[times < seconds]

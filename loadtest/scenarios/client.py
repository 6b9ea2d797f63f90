"""The client of every scenario: draws users and items, asks, holds each answer to the contract, and tells Locust.

An answer that is late, malformed or not finite counts as a failure. Only what Locust runs may import this file.
"""

import secrets
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import locust
import locust.env
import numpy as np
from numpy.typing import NDArray

from loadtest.scenarios.calls import TOP_K, CallFailed, Calls, Ranked, Served, connect
from loadtest.scenarios.options import add_options
from loadtest.scenarios.shape import Shape
from loadtest.scenarios.summary import Summary
from mfalcon_client import EVENT_DTYPE

_SETUP_S = 60.0
"""Of calls before and after the scenario."""
_DAY_MS = 86_400_000


class BadAnswer(CallFailed):
    """An answer that is not what the contract promises."""


@lru_cache(maxsize=1)
def zipf_cumulative(num_users: int, exponent: float) -> NDArray[np.float64]:
    """Cumulative probability of the users of ranks 1 to num_users: [num_users]."""
    weights = np.arange(1, num_users + 1, dtype=np.float64) ** -exponent
    cumulative: NDArray[np.float64] = np.cumsum(weights) / weights.sum()
    return cumulative


def check_rank(answer: Ranked, num_candidates: int) -> None:
    """Raises BadAnswer unless there is one finite score for each candidate, and the top is as asked."""
    if len(answer.scores) != num_candidates:
        raise BadAnswer("WRONG", f"{len(answer.scores)} scores for {num_candidates} candidates")
    if answer.num_failed or not np.isfinite(answer.scores).all():
        raise BadAnswer("WRONG", "a score is not finite")
    if len(answer.top) != min(TOP_K, num_candidates) or np.any(np.diff(answer.scores[answer.top]) > 0):
        raise BadAnswer("WRONG", "top is not the best candidates in order")


class Population:
    """The users of one run, with histories; nobody else has their names, and they are deleted at the end."""

    def __init__(self, environment: locust.env.Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        assert environment.host is not None
        self._prefix = f"load-{secrets.token_hex(4)}"
        self._size, self._history = int(options.num_users_space), int(options.history)
        self._zipf, self._num_items = float(options.zipf), int(options.num_items)
        self._rng = np.random.default_rng(options.load_seed)
        self._calls = connect(environment.host, _SETUP_S)
        self._there: set[str] = set()
        self._named = 0
        self.served = Served("", 0, 1)
        self.append_locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        """One append at a time for each user: a history takes events in time order only."""

    def make(self, *, warm: bool) -> None:
        """Append every user's history; warm: and encode it. Raises CallFailed."""
        self.served = self._calls.model()
        for number in range(self._size):
            self._calls.append(self._taken(f"{self._prefix}-{number}"), self.history(self._rng))
            if warm:
                self._calls.prefill(f"{self._prefix}-{number}")

    def history(self, rng: np.random.Generator) -> NDArray[np.void]:
        """Events of yesterday."""
        return self.events(rng, self._history, time.time_ns() // 1_000_000 - _DAY_MS)

    def events(self, rng: np.random.Generator, number: int, time_ms: int) -> NDArray[np.void]:
        """So many events, a millisecond after another."""
        events = np.zeros(number, dtype=EVENT_DTYPE)
        events["item_id"] = rng.integers(1, self._num_items + 1, number)
        events["actions"] = 1 << rng.integers(0, max(1, self.served.num_actions), number)
        events["value"] = 3.0
        events["time_ms"] = time_ms + np.arange(number)
        return events

    def candidates(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Item ids, at most as many as the server takes."""
        return rng.integers(1, self._num_items + 1, min(number, self.served.max_candidates or number))

    def draw(self, rng: np.random.Generator) -> str:
        """A user with a history, by Zipf's law."""
        cumulative = zipf_cumulative(self._size, self._zipf)
        rank = int(np.searchsorted(cumulative, rng.random(), side="right"))
        return f"{self._prefix}-{min(rank, self._size - 1)}"

    @property
    def first(self) -> str:
        """One user with a history."""
        return f"{self._prefix}-0"

    def new(self) -> str:
        """The name of a user of whom the server knows nothing."""
        self._named += 1
        return self._taken(f"{self._prefix}-new-{self._named}")

    def delete(self) -> None:
        """Delete all users; what cannot be deleted is left, as the server may be gone."""
        for user_id in sorted(self._there):
            try:
                self._calls.delete(user_id)
            except CallFailed:
                break
        self._calls.close()

    def _taken(self, user_id: str) -> str:
        self._there.add(user_id)  # first: an append that fails may have been written
        return user_id


class ScenarioClient(locust.User):
    """One client with a connection of its own. A scenario's class says what it asks, in tasks."""

    abstract = True
    wait_time = locust.between(0.0, 1.0)
    """After an answer, in seconds: half a second in the mean, and no two clients in step."""
    warm: ClassVar[bool] = True
    """Whether the states of all users are made before the scenario."""
    population: ClassVar[Population]
    """Of this process, made before the first client."""

    def __init__(self, environment: locust.env.Environment) -> None:
        super().__init__(environment)
        options = environment.parsed_options
        assert options is not None
        assert self.host is not None
        self.options = options
        self.rng = np.random.default_rng((options.load_seed, id(self)))
        self._timeout_s = options.deadline_ms / 1e3
        self._calls: Calls = connect(self.host, self._timeout_s)

    def on_stop(self) -> None:
        """Close the connection."""
        self._calls.close()

    def rank(self, user_id: str, num_candidates: int | None = None, name: str = "Rank") -> None:
        """Rank new candidates, as many as `--candidates` says or so many."""
        candidates = self.population.candidates(self.rng, num_candidates or self.options.candidates)

        def ask() -> dict[str, Any]:
            answer = self._calls.rank(user_id, candidates)
            check_rank(answer, len(candidates))
            return {"source": answer.source, "encoded_tokens": answer.encoded_tokens}

        self._report(name, ask)

    def append(self, user_id: str, number: int = 1, name: str = "AppendEvents") -> None:
        """Append so many events of now."""
        with self.population.append_locks[user_id]:
            events = self.population.events(self.rng, number, time.time_ns() // 1_000_000)
            events["time_ms"] = events["time_ms"][:1]  # ahead of now, the next ones would be older

            def ask() -> dict[str, Any]:
                if self._calls.append(user_id, events) < number:
                    raise BadAnswer("WRONG", "the history is shorter than what was appended")
                return {}

            self._report(name, ask)

    def append_history(self, user_id: str) -> None:
        """Append the history of a new user."""
        events = self.population.history(self.rng)

        def ask() -> dict[str, Any]:
            self._calls.append(user_id, events)
            return {}

        self._report("AppendEvents, history", ask)

    def prefill(self, user_id: str) -> None:
        """Encode a user's history ahead of a rank."""

        def ask() -> dict[str, Any]:
            self._calls.prefill(user_id)
            return {}

        self._report("Prefill", ask)

    def _report(self, name: str, ask: Callable[[], dict[str, Any]]) -> None:
        began, context = time.perf_counter(), dict[str, Any]()
        failure: CallFailed | None = None
        try:
            context = ask()
            if time.perf_counter() - began > self._timeout_s:
                failure = BadAnswer("LATE", "answered after the deadline")
        except CallFailed as error:
            failure = error
        self.environment.events.request.fire(
            request_type="http" if str(self.host).startswith("http") else "grpc",
            name=name,
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=0,
            response=None,
            context=context,
            exception=failure,
        )


def begin(environment: locust.env.Environment, **_: object) -> None:
    """Count from the first request on; make users before it, and delete them after the last."""
    options = environment.parsed_options
    assert options is not None
    summary = Summary(environment, Path(options.locustfile).stem)

    def make(**_: object) -> None:
        Shape.began = None
        population = ScenarioClient.population = Population(environment)
        classes = [one for one in environment.user_classes if issubclass(one, ScenarioClient)]
        try:
            population.make(warm=all(one.warm for one in classes))
        except CallFailed as error:
            print(f"error: {environment.host} answers {error}", file=sys.stderr)
            environment.process_exit_code = 1
            if environment.runner is not None:
                environment.runner.quit()
        summary.version = population.served.version
        summary.begin()
        Shape.began = time.perf_counter()

    def delete(**_: object) -> None:
        ScenarioClient.population.delete()

    environment.events.test_start.add_listener(make)
    environment.events.test_stop.add_listener(delete)


locust.events.init_command_line_parser.add_listener(add_options)
locust.events.init.add_listener(begin)

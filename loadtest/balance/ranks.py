"""Users who rank through a balancer all the while, and everything that came of it: answers, failures, times."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from loadtest.faults.oracle import Answer, Life
from mfalcon.types import EVENT_DTYPE, Events, Ids
from mfalcon_client import Client, ClientError, Retry

_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Ranked:
    """A call that ended. at, seconds: when it began, and how long it took. code: "OK", or that of the failure. source:
    the tier of the state, "" of a failure.
    """

    at: float
    seconds: float
    user: int
    code: str
    source: str = ""


class Users:
    """So many users with histories of their own, each with the same request all the while: there is one right answer.

    now_ms: of the requests.
    """

    def __init__(self, number: int, items: Ids, num_events: int, num_candidates: int, now_ms: int) -> None:
        rng = np.random.default_rng(7)
        self.names = [f"user {one}" for one in range(number)]
        self.now_ms = now_ms
        self.candidates = [rng.choice(items, num_candidates) for _ in self.names]
        self.lives = [Life() for _ in self.names]
        for life in self.lives:
            life.add(_history(rng, items, num_events, now_ms))
        self._distinct: dict[tuple[int, bytes], Answer] = {}

    def write(self, target: str) -> None:
        """Append the histories."""
        with Client(target, timeout_s=30) as client:
            for name, life in zip(self.names, self.lives, strict=True):
                client.append_events(name, life.events(), expected_len=0)

    def rank(self, client: Client, user: int) -> str:
        """Rank one user, and keep the answer to be checked; the tier of the state. Raises ClientError."""
        answer = client.rank(self.names[user], self.candidates[user], request_time_ms=self.now_ms)
        life, scores = self.lives[user], answer.task_scores
        key = user, scores.tobytes()
        if key not in self._distinct:
            self._distinct[key] = Answer(
                self.names[user], life, answer.history_len, self.now_ms, self.candidates[user], scores
            )
        return answer.cache.source.name

    @property
    def answers(self) -> list[Answer]:
        """Every answer that differs from the user's others in a bit."""
        return list(self._distinct.values())


class Load:
    """Threads that rank by turns, at `rate` a second in all, on a connection each."""

    def __init__(self, users: Users, target: str, rate: float, threads: int, only: Sequence[int] = ()) -> None:
        """only: the users, all if not given; with them threads do not pause."""
        self._users, self._target = users, target
        self._pause_s = 0.0 if only else threads / rate
        self._turns = [list(only) or list(range(len(users.names)))[number::threads] for number in range(threads)]
        self._ended = threading.Event()
        self.calls: list[Ranked] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the context is."""
        threads = [threading.Thread(target=self._run, args=(turns,)) for turns in self._turns]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _run(self, turns: Sequence[int]) -> None:
        with Client(self._target, timeout_s=_DEADLINE_S, retry=Retry(attempts=1)) as client:
            turn, due = 0, time.monotonic()
            while not self._ended.is_set():
                user, at = turns[turn % len(turns)], time.monotonic()
                try:
                    source, code = self._users.rank(client, user), "OK"
                except ClientError as error:
                    source, code = "", error.code
                self.calls.append(Ranked(at, time.monotonic() - at, user, code, source))
                turn, due = turn + 1, max(due + self._pause_s, time.monotonic() - self._pause_s)
                self._ended.wait(max(0.0, due - time.monotonic()))


def _history(rng: np.random.Generator, items: Ids, num_events: int, now_ms: int) -> Events:
    events = np.zeros(num_events, dtype=EVENT_DTYPE)
    events["item_id"], events["actions"], events["value"] = rng.choice(items, num_events), 1, 3.0
    events["time_ms"] = now_ms - num_events + np.arange(num_events)
    return events

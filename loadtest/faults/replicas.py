"""Calls of one client thread to a random one of several replicas, each call timed and its status kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from mfalcon.errors import CallFailed
from mfalcon.types import Events, Ids, no_events
from mfalcon_client import Client, ClientError, Ranking, Retry

Reply = TypeVar("Reply")


class Call(NamedTuple):
    """A call that ended. status: gRPC's name of it."""

    method: str
    status: str
    seconds: float


@dataclass(slots=True)
class CallLog:
    """What one thread sent, and which of that came to an end."""

    sent: int = 0
    ended: list[Call] = field(default_factory=list)


@contextmanager
def clients(targets: Sequence[str]) -> Iterator[list[Client]]:
    """A client for each target that asks once: what becomes of each attempt is what a run wants to know."""
    with ExitStack() as stack:
        yield [stack.enter_context(Client(target, retry=Retry(attempts=1))) for target in targets]


class Replicas:
    """Each call goes to a replica drawn by `rng`, with the same deadline. For one thread. Raises CallFailed."""

    def __init__(self, servers: Sequence[Client], rng: np.random.Generator, deadline_s: float, log: CallLog) -> None:
        self._servers = servers
        self._rng = rng
        self._deadline_s = deadline_s
        self._log = log
        self.latest = 0
        """The replica that had the latest call."""

    def rank(self, user_id: str, candidates: Ids, request_time_ms: int, recent_events: Events | None = None) -> Ranking:
        """Score candidates for a user."""
        recent = no_events() if recent_events is None else recent_events
        server = self._drawn()
        return self._ended(
            "Rank",
            lambda: server.rank(
                user_id,
                candidates,
                request_time_ms=request_time_ms,
                recent_events=recent,
                timeout_s=self._deadline_s,
            ),
        )

    def append_events(self, user_id: str, events: Events, expected_len: int, times: int) -> list[int | CallFailed]:
        """Append the same events so many times at once: the new length or the failure of each."""

        def append(server: Client) -> int | CallFailed:
            def call() -> int:
                done = server.append_events(user_id, events, expected_len=expected_len, timeout_s=self._deadline_s)
                return done.history_len

            try:
                return self._ended("AppendEvents", call)
            except CallFailed as failure:
                return failure

        with ThreadPoolExecutor(times) as threads:
            return list(threads.map(append, [self._drawn() for _ in range(times)]))

    def delete_user(self, user_id: str, meanwhile: Callable[[], object]) -> None:
        """Delete the user. meanwhile: is called while there is no answer yet."""
        server = self._drawn()
        with ThreadPoolExecutor(1) as thread:
            deleting = thread.submit(
                self._ended, "DeleteUser", lambda: server.delete_user(user_id, timeout_s=self._deadline_s)
            )
            meanwhile()
            deleting.result()

    def _drawn(self) -> Client:
        self.latest = int(self._rng.integers(len(self._servers)))
        self._log.sent += 1
        return self._servers[self.latest]

    def _ended(self, method: str, call: Callable[[], Reply]) -> Reply:
        """A call to its end, which is noted."""
        began, status = time.monotonic(), "OK"
        try:
            return call()
        except ClientError as error:
            status = error.code
            raise CallFailed(status, error.details) from error
        finally:
            self._log.ended.append(Call(method, status, time.monotonic() - began))

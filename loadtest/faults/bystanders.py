"""Who sees a fault without having caused it: another client that ranks all the while, and whoever asks for health."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, cast

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from loadtest.faults.oracle import Answer, score_errors
from loadtest.faults.server_process import REFUSED, ServerProcess
from loadtest.faults.world import Person
from loadtest.load.messages import rank_message, rank_result
from mfalcon.models.checkpoint import Checkpoint
from mfalcon_client import Ranking
from proto.ranking_pb2_grpc import RankingStub

PATIENCE_S = 300.0
"""Deadline of calls that are not about time: however slow the machine is."""
RIGHT = "right"
REFUSALS = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED"})
"""Answers after which another server, or a later attempt, helps: a documented refusal, and no failure. CANCELLED is
gRPC's own, to a call that is on the wire while its server stops.
"""
_PAUSE_S = 0.005
_AFTER_REFUSAL_S = 0.1
_POLL_S = 0.05
_RECONNECT_MS = 200


@contextmanager
def connected(server: ServerProcess) -> Iterator[RankingStub]:
    """A connection of one's own, which comes back soon after the server does."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS)]
    certificate = server.certificate
    with (
        grpc.insecure_channel(server.grpc, options)
        if certificate is None
        else grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(certificate.read_bytes()), options)
    ) as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_S)
        yield RankingStub(channel)


def ask(
    stub: RankingStub,
    person: Person,
    seed: int,
    timeout_s: float = PATIENCE_S,
    *,
    item: int | None = None,
    waits: bool = False,
) -> Ranking | str:
    """One rank: its scores, or the name of a status. item: the last candidate. waits: for a connection."""
    request = person.request(seed)
    if item is not None:
        request.candidates[-1] = item
    message = rank_message(request.user_id, request.candidates, request_time_ms=request.request_time_ms)
    try:
        return rank_result(stub.Rank(message, timeout=timeout_s, wait_for_ready=waits))
    except grpc.RpcError as error:
        return cast(grpc.Call, error).code().name


@dataclass(slots=True)
class Seen:
    """Outcomes in the order in which they came; the scores among them are compared with a cold forward in the end."""

    outcomes: Counter[str] = field(default_factory=Counter)
    _answers: dict[tuple[str, int, bytes], tuple[Answer, int, int]] = field(default_factory=dict)
    """Answers with what names them: how often each came, and of how many candidates it has no score."""

    def add(self, person: Person, seed: int, result: Ranking | str) -> None:
        """One more. Equal answers to equal questions are compared once."""
        if isinstance(result, str):
            self.outcomes[result] += 1
            return
        request, length = person.request(seed), person.life.size
        where, known = f"{person.user_id}, seed {seed}", (person.user_id, seed, result.task_scores.tobytes())
        candidates = np.delete(request.candidates, result.failed)
        scores = np.delete(result.task_scores, result.failed, axis=1)
        answer = Answer(where, person.life, length, request.request_time_ms, candidates, scores)
        first, count, _ = self._answers.get(known, (answer, 0, 0))
        self._answers[known] = first, count + 1, len(result.failed)

    def judged(self, checkpoint: Checkpoint, bound: float) -> Counter[str]:
        """How often each: right, WRONG, or the name of a status; of some candidates of an answer also "1 failed"."""
        errors = score_errors(checkpoint, [answer for answer, *_ in self._answers.values()], threads=1)
        counts = Counter(self.outcomes)
        for answer, count, num_failed in self._answers.values():
            outcome = RIGHT if errors[answer] <= bound else "WRONG"
            counts[f"{outcome}, {num_failed} failed" if num_failed else outcome] += count
        return counts


class Neighbour:
    """A client with a connection of its own that ranks users in turn until it is left."""

    def __init__(self, server: ServerProcess, people: Sequence[Person]) -> None:
        self._server = server
        self._people = people
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._rank, daemon=True)
        self._answered = threading.Condition()
        self._num_answered = 0
        self._since = 0.0
        self.seen = Seen()
        self.silence_s = 0.0
        """The longest time between two answers that were scores."""

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_for(2 * len(self._people))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)

    def wait_for(self, more: int) -> bool:
        """Wait for so many more scores; False if the server ended, or none came for long."""
        with self._answered:
            wanted = self._num_answered + more
            give_up = time.monotonic() + PATIENCE_S
            while self._num_answered < wanted:
                self._answered.wait(_POLL_S)
                if self._server.exit_code is not None or time.monotonic() > give_up:
                    return False
        return True

    def _rank(self) -> None:
        with connected(self._server) as stub:
            self._since, number = time.monotonic(), 0
            while not self._over.is_set():
                person = self._people[number % len(self._people)]
                result = ask(stub, person, number % len(self._people))
                if self._over.is_set() or self._server.exit_code is not None:
                    return
                self.seen.add(person, number % len(self._people), result)
                self._note(is_answer=not isinstance(result, str))
                number += 1
                self._over.wait(_AFTER_REFUSAL_S if isinstance(result, str) else _PAUSE_S)

    def _note(self, *, is_answer: bool) -> None:
        with self._answered:
            now = time.monotonic()
            self.silence_s = max(self.silence_s, now - self._since)
            if is_answer:
                self._since = now
                self._num_answered += 1
                self._answered.notify_all()


class HealthWatch:
    """Asks `/livez` and `/readyz` again and again and watches gRPC's health; keeps each change, with its time."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._over = threading.Event()
        self._changes: dict[str, list[tuple[float, str]]] = {"/livez": [], "/readyz": [], "grpc": []}
        works: tuple[Callable[[], None], ...] = (self._poll, self._watch)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        self._end_watch: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        while not all(self._changes.values()):
            time.sleep(_POLL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._end_watch()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def said(self, of: str) -> str:
        """The answers of one of them, in their order."""
        return " → ".join(word for _, word in self._changes[of])

    def changed_after(self, began: float) -> float | None:
        """Seconds from a time until the first answer that is not good; None if all were."""
        times = [at for changes in self._changes.values() for at, word in changes if word not in ("200", "SERVING")]
        return min((at - began for at in times if at > began), default=None)

    def _poll(self) -> None:
        while not self._over.is_set():
            for path in ("/livez", "/readyz"):
                self._note(path, self._server.asked(path))
            self._over.wait(_POLL_S)

    def _watch(self) -> None:
        with grpc.insecure_channel(self._server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            watch: grpc.UnaryStreamMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
                channel.unary_stream(
                    "/grpc.health.v1.Health/Watch",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                )
            )
            answers = watch(health_pb2.HealthCheckRequest())
            self._end_watch = answers.cancel
            try:
                for answer in answers:
                    self._note("grpc", health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
            except grpc.RpcError:
                if not self._over.is_set():
                    self._note("grpc", REFUSED)

    def _note(self, of: str, word: str) -> None:
        changes = self._changes[of]
        if not self._over.is_set() and (not changes or changes[-1][1] != word):
            changes.append((time.monotonic(), word))

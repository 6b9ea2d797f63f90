"""Calls of one client thread to a random one of several replicas, each call timed and its status kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import grpc
import numpy as np

from mfalcon.client import append_message, rank_message, rank_result
from mfalcon.errors import CallFailed
from mfalcon.types import Events, Ids, RankResult, no_events
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

_RECONNECT_MS = 200
"""gRPC's own backoff grows to two minutes: a server that is back would not be noticed."""

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
def channels(targets: Sequence[str]) -> Iterator[list[RankingStub]]:
    """A stub for each target, on channels that come back soon after a server does."""
    names = ("grpc.initial_reconnect_backoff_ms", "grpc.min_reconnect_backoff_ms", "grpc.max_reconnect_backoff_ms")
    opened = [grpc.insecure_channel(target, [(name, _RECONNECT_MS) for name in names]) for target in targets]
    try:
        yield [RankingStub(channel) for channel in opened]
    finally:
        for channel in opened:
            channel.close()


class Replicas:
    """Each call goes to a replica drawn by `rng`, with the same deadline. For one thread. Raises CallFailed."""

    def __init__(self, stubs: Sequence[RankingStub], rng: np.random.Generator, deadline_s: float, log: CallLog) -> None:
        self._stubs = stubs
        self._rng = rng
        self._deadline_s = deadline_s
        self._log = log
        self.latest = 0
        """The replica that had the latest call."""

    def rank(
        self, user_id: str, candidates: Ids, request_time_ms: int, recent_events: Events | None = None
    ) -> RankResult:
        """Score candidates for a user."""
        recent = no_events() if recent_events is None else recent_events
        message = rank_message(user_id, candidates, request_time_ms=request_time_ms, recent_events=recent)
        return rank_result(self._begin("Rank", message).reply())

    def append_events(self, user_id: str, events: Events, expected_len: int, times: int) -> list[int | CallFailed]:
        """Append the same events so many times at once: the new length or the failure of each."""
        message = append_message(user_id, events, expected_len)
        calls: list[_Pending[pb.AppendEventsResponse]] = [self._begin("AppendEvents", message) for _ in range(times)]
        outcomes: list[int | CallFailed] = []
        for call in calls:
            try:
                outcomes.append(int(call.reply().history_len))
            except CallFailed as error:
                outcomes.append(error)
        return outcomes

    def delete_user(self, user_id: str, meanwhile: Callable[[], object]) -> None:
        """Delete the user. meanwhile: is called before there is an answer."""
        call: _Pending[pb.DeleteUserResponse] = self._begin("DeleteUser", pb.DeleteUserRequest(user_id=user_id))
        meanwhile()
        call.reply()

    def _begin(self, method: str, message: object) -> "_Pending[Any]":
        self.latest = int(self._rng.integers(len(self._stubs)))
        send = getattr(self._stubs[self.latest], method).future
        self._log.sent += 1
        return _Pending(method, send(message, timeout=self._deadline_s), self._log)


class _Pending(Generic[Reply]):
    """A call under way; when it ends is noted then, not when somebody asks for the reply."""

    def __init__(self, method: str, call: "grpc.Future[Reply]", log: CallLog) -> None:
        self._method, self._call, self._log = method, call, log
        self._ended: list[float] = []
        self._began = time.monotonic()
        call.add_done_callback(lambda _: self._ended.append(time.monotonic()))

    def reply(self) -> Reply:
        """Once. Raises CallFailed."""
        status = "OK"
        try:
            return self._call.result()
        except grpc.RpcError as error:
            call = cast(grpc.Call, error)  # what a stub raises is both
            status = call.code().name
            raise CallFailed(status, call.details() or "no details") from error
        finally:
            ended = self._ended[0] if self._ended else time.monotonic()  # the callback runs in another thread
            self._log.ended.append(Call(self._method, status, ended - self._began))

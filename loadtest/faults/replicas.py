"""Calls of one client thread to a random one of several replicas, each call timed and its status kept."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar, cast

import grpc
import numpy as np

from mfalcon.client import append_message, rank_message, rank_result
from mfalcon.errors import CallFailed
from mfalcon.types import Events, Ids, RankResult
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

    def rank(self, user_id: str, candidates: Ids, request_time_ms: int) -> RankResult:
        """Score candidates for a user."""
        message = rank_message(user_id, candidates, request_time_ms=request_time_ms)
        reply: pb.RankResponse = self._call("Rank", lambda stub: stub.Rank(message, timeout=self._deadline_s))
        return rank_result(reply)

    def append_events(self, user_id: str, events: Events, expected_len: int) -> int:
        """Append events and return the new length."""
        message = append_message(user_id, events, expected_len)
        reply: pb.AppendEventsResponse = self._call(
            "AppendEvents", lambda stub: stub.AppendEvents(message, timeout=self._deadline_s)
        )
        return int(reply.history_len)

    def delete_user(self, user_id: str) -> None:
        """Forget the user."""
        message = pb.DeleteUserRequest(user_id=user_id)
        self._call("DeleteUser", lambda stub: stub.DeleteUser(message, timeout=self._deadline_s))

    def _call(self, method: str, send: Callable[[RankingStub], Reply]) -> Reply:
        self.latest = int(self._rng.integers(len(self._stubs)))
        stub = self._stubs[self.latest]
        self._log.sent += 1
        began = time.monotonic()
        try:
            reply = send(stub)
        except grpc.RpcError as error:
            seconds = time.monotonic() - began
            call = cast(grpc.Call, error)  # what a stub raises is both
            self._log.ended.append(Call(method, call.code().name, seconds))
            raise CallFailed(call.code().name, call.details() or "no details") from error
        self._log.ended.append(Call(method, "OK", time.monotonic() - began))
        return reply

"""Real servers as one asks them: each user's calls to one of them by the ring, and what processes cost in CPU time."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from loadtest.load.messages import append_message, rank_message
from loadtest.scale.ring import Ring
from mfalcon.errors import CallFailed
from mfalcon.rank_key import RANK_KEY, rank_key
from mfalcon.types import Events, Ids
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

_PATIENCE_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Caller:
    """`async with Caller(targets) as caller`. Every call raises CallFailed."""

    def __init__(self, targets: Sequence[str], names: Sequence[str]) -> None:
        """names: of the targets, as the ring hashes them."""
        self._channels = [grpc.aio.insecure_channel(target) for target in targets]
        self._stubs = [RankingStub(channel) for channel in self._channels]
        self._ring = Ring(names)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def rank(self, user: str, candidates: Ids, time_ms: int) -> pb.RankResponse:
        """Ask for a user."""
        key = rank_key(user)
        message = rank_message(user, candidates, request_time_ms=time_ms)
        try:
            answer: pb.RankResponse = await self._of(key).Rank(
                message, timeout=_PATIENCE_S, metadata=((RANK_KEY, key),)
            )
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name, error.details() or "no details") from error
        return answer

    async def append(self, user: str, events: Events) -> None:
        """Events to the end of a user's history."""
        key = rank_key(user)
        message = append_message(user, events, None)
        try:
            await self._of(key).AppendEvents(message, timeout=_PATIENCE_S, metadata=((RANK_KEY, key),))
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error.code().name, error.details() or "no details") from error

    def _of(self, key: str) -> RankingStub:
        number = self._ring.owner(key)
        assert number is not None
        return self._stubs[number]


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds that processes have had, system calls included; Linux only."""
    return sum(_cpu_s(pid) for pid in pids)


def _cpu_s(pid: int) -> float:
    # The name of the process, in parentheses, may have spaces in it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS

"""Scores that come in parts: what both clients make of them, and the stream of the one for threads."""

import dataclasses
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self, cast

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from mfalcon_client import decoding
from mfalcon_client.calls import Expected
from mfalcon_client.errors import ClientError, ServerFailure
from mfalcon_client.retry import Failure
from mfalcon_client.types import Part, Ranking


class Responses(Protocol):
    """What gRPC gives of a call with several answers."""

    def __next__(self) -> bytes:
        """The next one. Raises StopIteration after the last, and grpc.RpcError."""
        ...

    def cancel(self) -> object:
        """Want no more."""
        ...


class Reader:
    """What has come of one stream. num_scored: candidates whose scores have come."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._parts: list[Part] = []
        self._ranking: Ranking | None = None
        self.num_scored = 0

    def read(self, raw: bytes) -> Part | None:
        """The next part in its bytes; None for the last message, which has the rest of the answer. Raises ServerFailure
        where it cannot be read.
        """
        try:
            if self._ranking is not None:
                raise ValueError("a message behind the last one")
            part, answer = decoding.rank_part(raw)
            if answer is not None:
                self._ranking = self._whole(answer)
                return None
            if part.first != self.num_scored or not len(part.scores):
                raise ValueError(f"{len(part.scores)} scores from {part.first} on behind {self.num_scored}")
        except (DecodeError, ValueError) as error:
            raise ServerFailure("INTERNAL", f"the answer cannot be read: {error}") from error
        self._parts.append(part)
        self.num_scored += len(part.scores)
        return part

    @property
    def has_ended(self) -> bool:
        """Whether the last message has come."""
        return self._ranking is not None

    @property
    def ranking(self) -> Ranking:
        """The whole answer. Raises ValueError before the end of the stream."""
        if self._ranking is None:
            raise ValueError("ranking: the stream has not come to its end yet")
        return self._ranking

    def broken_off(self) -> ServerFailure:
        """The error of a stream that ends well without its last message."""
        return ServerFailure("INTERNAL", f"the stream ended behind {self.num_scored} scores without its answer")

    def _whole(self, answer: Ranking) -> Ranking:
        scores = [part.scores for part in self._parts]
        by_task = [part.task_scores for part in self._parts]
        whole = dataclasses.replace(
            answer,
            scores=np.concatenate(scores) if scores else answer.scores,
            task_scores=np.concatenate(by_task, axis=1) if by_task else answer.task_scores,
        )
        return self._expected.check(whole)


class RankStream(Iterator[Part]):
    """Parts of an answer as they come, in the order of the candidates. What ends it early is raised behind the parts
    that are right. `close` it, or use it as a context, if you may leave before its end: the server then stops the work.
    """

    def __init__(
        self,
        call: Responses,
        first: bytes,
        expected: Expected,
        closed: Callable[[], ClientError | None],
    ) -> None:
        """first: the message that has come. closed: the error of a call whose client was closed, if it was."""
        self._call = call
        self._first: bytes | None = first
        self._reader = Reader(expected)
        self._closed = closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __next__(self) -> Part:
        if self._reader.has_ended:
            raise StopIteration
        raw, self._first = self._first, None
        if raw is None:
            try:
                raw = next(self._call)
            except StopIteration:
                raise self._reader.broken_off() from None
            except grpc.RpcError as error:
                ended = cast(grpc.Call, error)
                failure = Failure.of(ended.code().name, ended.details(), ended.trailing_metadata())
                raise (self._closed() or failure.error(outcome_unknown=False)) from error
        part = self._reader.read(raw)
        if part is None:
            raise StopIteration
        return part

    @property
    def ranking(self) -> Ranking:
        """The whole answer, once all parts were taken. Raises ValueError before that."""
        return self._reader.ranking

    def close(self) -> None:
        """Take no more parts."""
        self._call.cancel()

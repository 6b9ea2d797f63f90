"""Scores and interests on their way to a front-end."""

from typing import Literal

import numpy as np

from mfalcon.interests import Interests, Nearest
from mfalcon.types import (
    CacheInfo,
    MemberResult,
    RankPart,
    RankResult,
    RerankSkipped,
    Timings,
)
from server.frontends.message import Message, Notes, flat


class Ranked(Message):
    """See `RankResult`. scores: float32; task_scores: float32, task by task; top, unknown, failed: uint32."""

    scores: bytes
    tasks: tuple[str, ...]
    task_scores: bytes
    top: bytes
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    unknown: bytes
    stale: bool
    failed: bytes
    rerank_skipped: RerankSkipped | Literal[""]
    members: tuple[MemberResult, ...]
    partial_merge: bool
    counters_version: int
    counters_stale: bool
    history_version: bytes
    items_version: str
    candidates: bytes
    candidate_texts: tuple[str, ...] = ()
    graph_version: str = ""
    notes: Notes | None = None

    @classmethod
    def of(cls, call: int, result: RankResult) -> "Ranked":
        """What answers with a result."""
        return cls(
            call,
            flat(result.scores, np.float32),
            result.tasks,
            flat(result.task_scores, np.float32),
            flat(result.top, np.uint32),
            result.model_version,
            result.cache,
            result.timings,
            result.history_len,
            flat(result.unknown, np.uint32),
            result.stale,
            flat(result.failed, np.uint32),
            result.rerank_skipped,
            result.members,
            result.partial_merge,
            result.counters_version,
            result.counters_stale,
            result.history_version,
            result.items_version,
            flat(result.candidates, np.int64),
            result.candidate_texts,
            result.graph_version,
        )

    def result(self) -> RankResult:
        """The result, as the engine gave it."""
        scores = np.frombuffer(self.scores, np.float32)
        return RankResult(
            scores=scores,
            tasks=self.tasks,
            task_scores=np.frombuffer(self.task_scores, np.float32).reshape(len(self.tasks), len(scores)),
            top=np.frombuffer(self.top, np.uint32),
            model_version=self.model_version,
            cache=self.cache,
            timings=self.timings,
            history_len=self.history_len,
            unknown=np.frombuffer(self.unknown, np.uint32),
            stale=self.stale,
            failed=np.frombuffer(self.failed, np.uint32),
            rerank_skipped=self.rerank_skipped,
            members=self.members,
            partial_merge=self.partial_merge,
            counters_version=self.counters_version,
            counters_stale=self.counters_stale,
            history_version=self.history_version,
            items_version=self.items_version,
            candidates=np.frombuffer(self.candidates, np.int64),
            candidate_texts=self.candidate_texts,
            graph_version=self.graph_version,
        )


class Part(Message):
    """See `RankPart`: of a call that has no answer yet. scores, task_scores: float32; unknown, failed: uint32."""

    first: int
    scores: bytes
    task_scores: bytes
    unknown: bytes
    failed: bytes
    tasks: tuple[str, ...]
    model_version: str

    @classmethod
    def of(cls, call: int, part: RankPart) -> "Part":
        """What tells scores."""
        return cls(
            call,
            part.first,
            flat(part.scores, np.float32),
            flat(part.task_scores, np.float32),
            flat(part.unknown, np.uint32),
            flat(part.failed, np.uint32),
            part.tasks,
            part.model_version,
        )

    def part(self) -> RankPart:
        """The part, as the engine gave it."""
        scores = np.frombuffer(self.scores, np.float32)
        return RankPart(
            first=self.first,
            scores=scores,
            task_scores=np.frombuffer(self.task_scores, np.float32).reshape(len(self.tasks), len(scores)),
            unknown=np.frombuffer(self.unknown, np.uint32),
            failed=np.frombuffer(self.failed, np.uint32),
            tasks=self.tasks,
            model_version=self.model_version,
        )


class Interested(Message):
    """See `Interests`. vectors: float32; nearest: of each condition int64, float32, and texts."""

    conditions: tuple[str, ...]
    vectors: bytes
    nearest: tuple[tuple[bytes, bytes, tuple[str, ...]], ...]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    history_version: bytes
    stale: bool
    computed_ahead: bool

    @classmethod
    def of(cls, call: int, found: Interests) -> "Interested":
        """What answers with interests."""
        return cls(
            call,
            found.conditions,
            flat(found.vectors, np.float32),
            tuple((flat(each.item_ids, np.int64), flat(each.scores, np.float32), each.texts) for each in found.nearest),
            found.model_version,
            found.cache,
            found.timings,
            found.history_len,
            found.history_version,
            found.stale,
            found.computed_ahead,
        )

    def interests(self) -> Interests:
        """The interests, as the engine gave them."""
        return Interests(
            conditions=self.conditions,
            vectors=np.frombuffer(self.vectors, np.float32).reshape(len(self.conditions), -1),
            nearest=tuple(
                Nearest(np.frombuffer(ids, np.int64), np.frombuffer(scores, np.float32), texts)
                for ids, scores, texts in self.nearest
            ),
            model_version=self.model_version,
            cache=self.cache,
            timings=self.timings,
            history_len=self.history_len,
            history_version=self.history_version,
            stale=self.stale,
            computed_ahead=self.computed_ahead,
        )

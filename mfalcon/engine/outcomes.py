"""What the members of an ensemble have given when its budget is spent, and the answer or the error that this makes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from mfalcon.engine.members import Disagrees, Member
from mfalcon.errors import (
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    MFalconError,
    NotReady,
    Overloaded,
    ShuttingDown,
    StorageUnavailable,
    TooFewMembers,
)
from mfalcon.merging.merge import Merge
from mfalcon.types import CacheInfo, MemberResult, Positions, RankResult, Timings

_LONGEST_ERROR = 200
ARRIVED = "arrived"

T = TypeVar("T")


class Outdated(EngineFailure):
    """A member answered from another history than the others."""


_WORDS: tuple[tuple[type[MFalconError], str], ...] = (
    (DeadlineExceeded, "late"),
    (Overloaded, "overloaded"),
    (NotReady, "away"),
    (ShuttingDown, "away"),
    (Disagrees, "disagrees"),
    (Outdated, "outdated"),
    (TooFewMembers, "given_up"),
)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Of one member: what it answered or why it did not, after so many seconds."""

    member: Member
    weight: float
    answer: T | None
    error: MFalconError | None
    took_s: float

    @property
    def word(self) -> str:
        """How it ended."""
        if self.error is None:
            return ARRIVED
        return next((word for kind, word in _WORDS if isinstance(self.error, kind)), "failed")

    @property
    def why(self) -> str:
        """Why it did not arrive, "" if it did."""
        return "" if self.error is None else f"{self.word}: {self.error}"[:_LONGEST_ERROR]


def told(outcome: Outcome[RankResult], num_scored: int) -> MemberResult:
    """For the caller, of the first candidates."""
    member, result, took_us = outcome.member, outcome.answer, _us(outcome.took_s)
    if result is None:
        return MemberResult(member.model, member.address, outcome.weight, error=outcome.why, took_us=took_us)
    return MemberResult(
        model=member.model,
        address=member.address,
        weight=outcome.weight,
        version=result.model_version,
        arrived=True,
        cache=result.cache,
        timings=result.timings,
        unknown=_below(result.unknown, num_scored),
        failed=_below(result.failed, num_scored),
        took_us=took_us,
        items_version=result.items_version,
    )


def of_one_history(outcomes: Sequence[Outcome[RankResult]]) -> list[Outcome[RankResult]]:
    """Without the results of another history than that which the most weight saw, the longer of two: an event may be
    appended while members read the log. Only what was scored from one history is merged.
    """
    weights = dict[int, float]()
    for outcome in outcomes:
        if outcome.answer is not None:
            seen = outcome.answer.history_len
            weights[seen] = weights.get(seen, 0.0) + outcome.weight
    if len(weights) < 2:
        return list(outcomes)
    length = max(weights, key=lambda length: (weights[length], length))
    return [
        outcome
        if outcome.answer is None or outcome.answer.history_len == length
        else replace(
            outcome,
            answer=None,
            error=Outdated(f"it saw {outcome.answer.history_len} events, the others {length}"),
        )
        for outcome in outcomes
    ]


def merged(outcomes: Sequence[Outcome[RankResult]], merge: Merge, top_k: int, accepted: float) -> RankResult:
    """The answer, of those that arrived, for the candidates that all of these have scored. Raises EngineFailure where
    no candidate has a score.
    """
    began = time.monotonic()
    arrived = [(outcome.answer, outcome.weight) for outcome in outcomes if outcome.answer is not None]
    results = [result for result, _ in arrived]
    num = min(result.num_scored for result in results)
    found = merge([result.task_scores[:, :num] for result in results], [weight for _, weight in arrived])
    if len(found.failed) == num:
        raise EngineFailure(f"the members give none of {num} candidates a score that is a finite number")
    slowest = max(results, key=lambda result: result.timings.total_us).timings
    members = tuple(told(outcome, num) for outcome in outcomes)
    now = time.monotonic()
    return RankResult(
        scores=found.scores,
        tasks=tuple(task.name for task in merge.tasks),
        task_scores=found.task_scores,
        top=found.top(top_k),
        model_version="+".join(result.model_version for result in results),
        cache=total([result.cache for result in results]),
        timings=Timings(
            queue_us=slowest.queue_us,
            state_us=slowest.state_us,
            encode_us=slowest.encode_us,
            score_us=slowest.score_us,
            total_us=_us(now - accepted),
            merge_us=_us(now - began),
            features_us=slowest.features_us,
        ),
        history_len=results[0].history_len,
        history_version=results[0].history_version,
        unknown=np.unique(np.array([at for member in members for at in member.unknown], dtype=np.uint32)),
        stale=any(result.stale for result in results),
        counters_version=max(result.counters_version for result in results),
        counters_stale=any(result.counters_stale for result in results),
        failed=found.failed,
        members=members,
        partial_merge=len(results) < len(outcomes) or any(member.failed for member in members),
    )


def total(caches: Sequence[CacheInfo]) -> CacheInfo:
    """Of all, found in the tier of the first."""
    reused, encoded = sum(cache.reused_tokens for cache in caches), sum(cache.encoded_tokens for cache in caches)
    return CacheInfo(caches[0].source, reused, encoded)


def too_few(outcomes: Sequence[Outcome[T]], num_needed: int, *, is_callers_time: bool) -> MFalconError:
    """Why there is no answer: what all say that did not arrive, where that is one thing; else that another replica may
    have more members. is_callers_time: the deadline has ended the wait, not the budget.
    """
    lost = [outcome for outcome in outcomes if outcome.error is not None and outcome.word != "given_up"]
    errors = [outcome.error for outcome in lost]
    without = ", ".join(f"{named(outcome.member)} ({outcome.why})" for outcome in lost)
    text = f"{num_needed} of {len(outcomes)} members must answer; without one: {without}"
    if is_callers_time and any(isinstance(error, DeadlineExceeded) for error in errors):
        return DeadlineExceeded(text)
    overloaded = [error for error in errors if isinstance(error, Overloaded)]
    if len(overloaded) == len(errors):
        waits = [error.retry_after_s for error in overloaded if error.retry_after_s is not None]
        elsewhere = any(error.elsewhere for error in overloaded)
        return Overloaded(text, retry_after_s=max(waits, default=None), elsewhere=elsewhere)
    if all(isinstance(error, InvalidInput) for error in errors):
        return InvalidInput.of(str(errors[0]))
    for kind in (ShuttingDown, StorageUnavailable, EngineFailure):
        if all(isinstance(error, kind) for error in errors):
            return kind(text)
    return TooFewMembers(text)


def named(member: Member) -> str:
    """As an operator knows it."""
    return f"{member.model} at {member.address}" if member.address else member.model


def _below(positions: Positions, num: int) -> tuple[int, ...]:
    return tuple(positions[positions < num].tolist())


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

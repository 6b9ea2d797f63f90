"""Plays captured requests through the engine's device, with the histories and counters that they were answered with.

No event log, no counters and no network take part: a job carries what the capture holds, and the cache of KV states
works as it does in a server. So a request is cheap after an earlier one of the same user.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from cachetools import LRUCache

from mfalcon.backends.choice import AUTO
from mfalcon.backends.fused import FusedBackend
from mfalcon.backends.select import ServedModel
from mfalcon.capture.reader import Captured, WasHistory
from mfalcon.counters.sets import Counted
from mfalcon.engine.compose import EngineConfig, compose_all, shared
from mfalcon.engine.job import RankJob
from mfalcon.engine.members import narrowed
from mfalcon.engine.probe import BOUNDS
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.errors import MFalconError
from mfalcon.features.counters import LikeRule
from mfalcon.history.chain import LINK_BYTES, user_hash
from mfalcon.history.history import History
from mfalcon.kvcache.fetch import Fetched
from mfalcon.merging.merge import Merge
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import Floats, ModelInfo, RankRequest, RankResult, TaskInfo, no_events

_GENERATION = b"captured"
_HISTORIES_BYTES = 1 << 30
_ANSWER_S = 600.0


@dataclass(frozen=True, slots=True)
class PlayerOptions:
    """threads: of the device. in_flight: requests that are played at once. The rest as in `RankerOptions`."""

    threads: int
    in_flight: int = 8
    backend: str = AUTO
    kv_dtype: str = "auto"
    kv_budget_bytes: int = 1 << 30
    microbatch: int | None = None


@dataclass(frozen=True, slots=True)
class PlayedMerge:
    """An ensemble that is played. weights: of its members, in order."""

    name: str
    merge: Merge
    weights: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What a checkpoint answers to a captured request. scores: [n], task_scores: [num_tasks, n]. compute_us: of its
    features, state and scores, of an ensemble of all members; waiting is not among it. error: why there is none.
    unread: context values of the request that the model has no code for. without_counters: it reads counters that were
    not captured.
    """

    scores: Floats
    task_scores: Floats
    compute_us: int
    reused_tokens: int = 0
    error: str = ""
    unread: int = 0
    without_counters: bool = False


class Histories:
    """Those of the users that are played, grown as the captured ones grew, so that their hashes are made once."""

    def __init__(self) -> None:
        self._known: LRUCache[str, History] = LRUCache(_HISTORIES_BYTES, getsizeof=lambda history: history.num_bytes)

    def of(self, user: str, was: WasHistory) -> History:
        """A captured history, as one of a log."""
        known = self._known.get(user)
        history = _begun(user, was.base) if known is None or known.base > was.base else known
        if len(history) < was.base:
            history = _begun(user, was.base)
        kept = history.events[was.base - history.base :]
        num = min(len(kept), len(was.events))
        differs = np.flatnonzero(kept[:num] != was.events[:num])
        num_alike = int(differs[0]) if len(differs) else num
        history = history.until(was.base + num_alike)
        if history.base < was.base:
            history = history.trimmed(was.base)
        if num_alike < len(was.events):
            history = history.extended(was.events[num_alike:])
        self._known[user] = history
        return history


def _begun(user: str, base: int) -> History:
    """Without events; what was before `base` is not known, and is named by that."""
    named = user_hash(user)
    link = hashlib.blake2b(named + base.to_bytes(8, "little"), digest_size=LINK_BYTES).digest() if base else named
    return History(user, named, _GENERATION, base, no_events(), link)


@dataclass(slots=True, eq=False)
class _Pending:
    """A request that is being played: a job for each member."""

    captured: Captured
    jobs: list[RankJob]
    unread: int = 0
    without_counters: bool = False
    error: str = ""


class Player:
    """A checkpoint, or the members of an ensemble, on a device of its own. Who makes it calls `close`."""

    def __init__(
        self, members: Mapping[str, Checkpoint], options: PlayerOptions, ensemble: PlayedMerge | None = None
    ) -> None:
        """members: by name; one where there is no ensemble. Raises ConfigError where they cannot be served here."""
        ranker = RankerOptions(
            backend=options.backend,
            kv_dtype=options.kv_dtype,
            microbatch=options.microbatch,
            kv_budget_bytes=options.kv_budget_bytes,
        )
        models = [
            (checkpoint, shared(replace(ranker, name=name or None), 1 / len(members)))
            for name, checkpoint in members.items()
        ]
        self._options = options
        self._ensemble = ensemble
        self._engine = compose_all(models, EngineConfig(threads=options.threads, queue_size=1 << 20))
        self._engine.wait_ready()
        self._rankers: list[LoadedRanker] = list(self._engine.catalog)
        self._likes = [_like_of(ranker) for ranker in self._rankers]
        self._histories = Histories()

    @property
    def infos(self) -> tuple[ModelInfo, ...]:
        """Of the members."""
        return tuple(ranker.info for ranker in self._rankers)

    @property
    def name(self) -> str:
        """Of the model or the ensemble."""
        return self._ensemble.name if self._ensemble is not None else self._rankers[0].name

    @property
    def version(self) -> str:
        """As answers name it."""
        return "+".join(info.version for info in self.infos)

    @property
    def backend(self) -> str:
        """What computes, as GetModel tells it; of an ensemble that of its members."""
        return " + ".join(dict.fromkeys(info.backend for info in self.infos))

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """In the order of the scores."""
        return self._ensemble.merge.tasks if self._ensemble is not None else self._rankers[0].info.task_infos

    @property
    def is_exact(self) -> bool:
        """Whether the same checkpoint and kernel give the same scores to the bit, whatever was cached: law 7."""
        return all(_is_exact(ranker) for ranker in self._rankers)

    @property
    def bound(self) -> float:
        """By how much its scores may differ from what another backend of the type computes."""
        return max(BOUNDS[ranker.checkpoint.model.dtype] for ranker in self._rankers)

    def play(self, requests: Iterable[Captured]) -> Iterator[tuple[Captured, Played]]:
        """Answers, in the order of the requests. As many as may be are under way at once."""
        waiting = deque[_Pending]()
        for captured in requests:
            waiting.append(self._begin(captured))
            if len(waiting) >= self._options.in_flight:
                yield self._end(waiting.popleft())
        while waiting:
            yield self._end(waiting.popleft())

    def close(self) -> None:
        """End the device."""
        asyncio.run(self._engine.close())

    def _begin(self, captured: Captured) -> _Pending:
        history, pending = self._histories.of(captured.user, captured.history), _Pending(captured, [])
        beside = object() if len(self._rankers) > 1 else None
        counted = Counted(captured.item_counts)
        for ranker, like in zip(self._rankers, self._likes, strict=True):
            request, unread = fitted(captured.request, ranker.info)
            pending.unread += unread
            pending.without_counters |= like is not None and like not in captured.item_counts
            job = RankJob(request, Fetched(history), None, ranker.name, counted=counted, beside=beside)
            try:
                self._engine.device.submit(job)
            except MFalconError as error:
                job.future.set_exception(error)
            pending.jobs.append(job)
        return pending

    def _end(self, pending: _Pending) -> tuple[Captured, Played]:
        results, error = list[RankResult](), ""
        for job in pending.jobs:
            try:
                results.append(job.future.result(timeout=_ANSWER_S))
            except (MFalconError, TimeoutError) as raised:
                error = str(raised) or "no answer"
        if error:
            nothing = np.empty(0, dtype=np.float32)
            return pending.captured, Played(nothing, nothing.reshape(0, 0), 0, error=error)
        compute_us = sum(
            result.timings.state_us + result.timings.features_us + result.timings.encode_us + result.timings.score_us
            for result in results
        )
        scores, task_scores = results[0].scores, results[0].task_scores
        if self._ensemble is not None:
            began = time.perf_counter()
            merged = self._ensemble.merge([result.task_scores for result in results], self._ensemble.weights)
            scores, task_scores = merged.scores, merged.task_scores
            compute_us += round(1e6 * (time.perf_counter() - began))
        reused = sum(result.cache.reused_tokens for result in results)
        return pending.captured, Played(
            scores,
            task_scores,
            compute_us,
            reused,
            unread=pending.unread,
            without_counters=pending.without_counters,
        )


def fitted(request: RankRequest, info: ModelInfo) -> tuple[RankRequest, int]:
    """A request as a model may be asked, and how many of its context values the model has no code for. A captured one
    may be of another model; what that read and this does not is left out.
    """
    request = narrowed(request, info)
    most = {feature.name: feature.num_values for feature in info.context_features}
    fits = {name: value for name, value in request.context.items() if 0 <= value < most[name]}
    unread = len(request.context) - len(fits)
    return replace(request, context=fits), unread


def _like_of(ranker: LoadedRanker) -> LikeRule | None:
    config = ranker.checkpoint.model.config
    return LikeRule.of(config) if config.counters is not None else None


def _is_exact(ranker: LoadedRanker) -> bool:
    served = ranker.served
    if not isinstance(served, ServedModel):
        return False
    is_float32 = served.pool.layout.shape.dtype == torch.float32 and ranker.options.kv_dtype == "auto"
    return is_float32 and isinstance(served.stack, FusedBackend)

"""Runs jobs on the device: finds or makes the KV states, scores, blends, sorts. Several may run at once; a batch of
ranks of different users is one computation.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from kernels.paged import to_device
from mfalcon.algorithm import Scoring, append_all, score_all
from mfalcon.backends.select import ServedModel
from mfalcon.engine.clock import Moment, clock_of
from mfalcon.engine.job import Job, PrefillJob, RankJob
from mfalcon.errors import DeadlineExceeded, EngineFailure, MFalconError
from mfalcon.history.history import History
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.fetch import Fetched
from mfalcon.kvcache.planner import Predictor
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.heads import blend_weights
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.types import CacheInfo, CacheSource, Events, Ids, Positions, RankResult, Timings, no_events
from mfalcon.window import WindowRule

_SMALL_EVENTS = 32
"""New events of a request that is still small: fewer than one tile of rows for each core."""


@dataclass(frozen=True, slots=True)
class Need:
    """The way of one request to the KV state that it scores against.

    state: what is reused of it. history_events: what is missing of the acknowledged history; recent: what only this
    request knows. keep: what to keep the state of the history under, if it may be: the history, where this window
    begins, and where the history's own begins.
    """

    state: KVState
    source: CacheSource
    history_events: Events
    recent: Events
    keep: tuple[History, int, int] | None
    state_s: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """The KV states that requests score against, and the work that it took to get them."""

    states: Sequence[KVState]
    work: Sequence["_Work"]


@dataclass(frozen=True, slots=True)
class _Work:
    """One encoding, of one or many users. sizes: tokens before, and new ones, of each."""

    sizes: Sequence[tuple[int, int]]
    began: Moment
    ended: Moment


@dataclass(frozen=True, slots=True)
class _Ranking:
    """A request on its way, and when the device thread took it."""

    job: RankJob
    rows: Ids
    need: Need
    state: KVState
    began: float


class Runner:
    """A model on its device, with its item table and its states."""

    def __init__(
        self,
        served: ServedModel,
        items: ItemTable,
        cache: KVCache,
        microbatch: int,
        version: str,
        predictor: Predictor | None = None,
        small_candidates: int = 0,
    ) -> None:
        self._served = served
        self._model = model = served.model
        self._items = items
        self._cache = cache
        self._window = WindowRule(model.config.max_history, model.config.window_chunk)
        self._microbatch = microbatch
        self._version = version
        self._predictor = predictor or Predictor()
        self._small_candidates = small_candidates
        self._device = model.items.id.weight.device
        self._clock = clock_of(self._device)
        self._tasks = tuple(task.name for task in model.config.tasks)
        self._blend = np.array(blend_weights(model.config.tasks, model.config.blend), dtype=np.float64)

    def rank(self, job: RankJob) -> RankResult:
        """Score the candidates of a request. Raises DeadlineExceeded between encoding and scoring if it is too late."""
        [answer] = self.rank_all([job])
        if isinstance(answer, MFalconError):
            raise answer
        return answer

    def rank_all(self, jobs: Sequence[RankJob]) -> list[RankResult | MFalconError]:
        """`rank` for several users at once: each one's answer or its own error. Raises what is wrong with any of them
        before it was known whose it is.
        """
        with ExitStack() as pins:
            return self._rank_all(jobs, pins)

    def _rank_all(self, jobs: Sequence[RankJob], pins: ExitStack) -> list[RankResult | MFalconError]:
        began = time.monotonic()
        needs = [self._need(job.fetched_history, job.request.recent_events, pins) for job in jobs]
        encoded = self._encode(needs, pins)
        encode_s = self._observe(encoded.work)  # waits for it: until then nobody knows who is too late
        answers: dict[int, RankResult | MFalconError] = {}
        going: dict[int, _Ranking] = {}
        for index, (job, need, state) in enumerate(zip(jobs, needs, encoded.states, strict=True)):
            if job.deadline is not None and time.monotonic() > job.deadline:
                answers[index] = DeadlineExceeded("the deadline passed while the history was being encoded")
            else:
                going[index] = _Ranking(job, self._items.rows(job.request.candidates), need, state, began)
        scoring = time.monotonic()
        by_task = self._score(list(going.values()))
        for (index, ranking), scores in zip(going.items(), by_task, strict=True):
            answers[index] = self._result(ranking, scores, encode_s, time.monotonic() - scoring)
        return [answers[index] for index in range(len(jobs))]

    def prefill(self, job: PrefillJob) -> CacheInfo:
        """Bring a user's state up to date."""
        with ExitStack() as pins:
            need = self._need(job.fetched_history, no_events(), pins)
            encoded = self._encode([need], pins)
        self._observe(encoded.work)
        return _cache_info(need, encoded.states[0])

    def check_device(self) -> None:
        """Raises if the device is lost: after an error in a kernel CUDA refuses everything, for good."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    @property
    def batched(self) -> bool:
        """Whether several users are better done as one computation than one after the other."""
        return self._served.stack.batched

    def is_small(self, job: Job) -> bool:
        """Whether a job is better done on one core beside others than on all cores. Any thread may ask."""
        if not isinstance(job, RankJob) or len(job.request.candidates) > self._small_candidates:
            return False
        log, num_recent = job.fetched_history.history, len(job.request.recent_events)
        start = self._window.start(len(log) + num_recent, log.base)
        held = self._cache.peek(log, start) if start < len(log) else 0
        return len(log) + num_recent - start - held <= _SMALL_EVENTS

    def delete(self, user: bytes | None) -> None:
        """Erase a user's states, or everybody's."""
        self._cache.delete(user)

    def _need(self, fetched_history: Fetched, recent: Events, pins: ExitStack) -> Need:
        """What there is of the window of history and recent events, and what is missing. The history's part will be
        kept in the cache, the rest not.

        If the recent events move the window's start, the state of what they leave of the history is kept too, beside
        that of the history's own window: the next request with recent events finds it, and so does the history when
        they are acknowledged. pins: hold what was found, so that making room for one user does not drop the state of
        another.
        """
        began = time.monotonic()
        log = fetched_history.history
        start = self._window.start(len(log) + len(recent), log.base)
        if not self._model.prefix_stable or (start > 0 and start >= len(log)):  # nothing of the history to keep
            kept = log.since(start) if start < len(log) else no_events()
            left = np.concatenate([kept, recent[max(0, start - len(log)) :]])
            empty = self._served.empty_state()
            return Need(empty, CacheSource.NONE, no_events(), left, None, time.monotonic() - began)
        found = self._cache.lookup(log, start, fetched_history.fetched)
        stop = found.stop if found else start
        missing = log.since(stop) if stop < len(log) else no_events()
        state, source = (found.state, found.source) if found else (self._served.empty_state(), CacheSource.NONE)
        pins.enter_context(state.pinned())
        keep = log, start, self._window.start(len(log), log.base)
        return Need(state, source, missing, recent, keep, time.monotonic() - began)

    def _encode(self, needs: Sequence[Need], pins: ExitStack) -> Encoded:
        """The states that are needed: first all histories, which are kept, then all that is recent. pins: hold them."""
        states = [need.state for need in needs]
        states, history_work = self._append(states, [need.history_events for need in needs])
        for need, state in zip(needs, states, strict=True):
            pins.enter_context(state.pinned())
            if need.keep is not None and len(need.history_events):
                history, start, own_start = need.keep
                self._cache.put(history, start, state, own_start)
        states, recent_work = self._append(states, [need.recent for need in needs])
        return Encoded(states, [*history_work, *recent_work])

    def _append(self, states: Sequence[KVState], events: Sequence[Events]) -> tuple[list[KVState], list[_Work]]:
        """Each state with its new events; those without any stay as they are."""
        longer = list(states)
        growing = [index for index, new in enumerate(events) if len(new)]
        if not growing:
            return longer, []
        began = self._clock.now()
        deltas = [event_tokens(events[index], self._items, self._device) for index in growing]
        grown = append_all(self._served, [states[index] for index in growing], deltas)
        sizes = []
        for index, state in zip(growing, grown, strict=True):
            sizes.append((states[index].num_tokens, state.num_tokens - states[index].num_tokens))
            longer[index] = state
        return longer, [_Work(sizes, began, self._clock.now())]

    def _observe(self, work: Sequence[_Work]) -> float:
        """Learn what encoding costs; of several users at once each has its share by what was expected of it. Returns
        the seconds of all of it.
        """
        total, cost = 0.0, self._predictor.encode
        for done in work:
            seconds = self._clock.seconds(done.began, done.ended)
            expected = [cost.predict(*size).seconds for size in done.sizes]
            for size, share in zip(done.sizes, expected, strict=True):
                cost.observe(*size, seconds * share / sum(expected))
            total += seconds
        return total

    def _score(self, rankings: Sequence[_Ranking]) -> list[np.ndarray]:
        """Scores of each request, float64 [num_tasks, num_candidates]."""
        if not rankings:
            return []
        features = self._model.config.context_features
        requests = []
        for ranking in rankings:
            request = ranking.job.request
            codes = context_codes(features, request.context, request.request_time_ms)
            targets = Targets(self._to_device(ranking.rows), self._to_device(codes))
            requests.append(Scoring(ranking.state, targets, request.request_time_ms))
        out = score_all(self._served, requests, self._microbatch).to("cpu", torch.float64).numpy()
        ends = np.cumsum([len(ranking.rows) for ranking in rankings])[:-1]
        return [np.ascontiguousarray(part.T) for part in np.split(out, ends)]

    def _result(
        self, ranking: _Ranking, by_task: np.ndarray, encode_s: float, score_s: float
    ) -> RankResult | EngineFailure:
        job, fetched_history, need = ranking.job, ranking.job.fetched_history, ranking.need
        with np.errstate(over="ignore"):
            scores, task_scores = (self._blend @ by_task).astype(np.float32), by_task.astype(np.float32)
        if not (np.isfinite(scores).all() and np.isfinite(task_scores).all()):
            return EngineFailure("the model gave a score that is not a finite number")
        top = best_first(scores, job.request.top_k)
        timings = Timings(
            queue_us=_us(ranking.began - job.queued),
            state_us=_us(fetched_history.seconds + need.state_s),
            encode_us=_us(encode_s),
            score_us=_us(score_s),
            total_us=_us(time.monotonic() - job.accepted),
        )
        return RankResult(
            scores=scores,
            tasks=self._tasks,
            task_scores=task_scores,
            top=top,
            model_version=self._version,
            cache=_cache_info(need, ranking.state),
            timings=timings,
            history_len=len(fetched_history.history),
            stale=fetched_history.stale,
            unknown=np.flatnonzero(ranking.rows == UNKNOWN_ROW).astype(np.uint32),
        )

    def _to_device(self, numbers: Ids) -> torch.Tensor:
        return to_device(numbers, self._device)


def _cache_info(need: Need, state: KVState) -> CacheInfo:
    reused = need.state.num_tokens
    return CacheInfo(need.source, reused, state.num_tokens - reused)


def best_first(scores: np.ndarray, top_k: int) -> Positions:
    """Positions of the top_k highest scores, best first, ties by position."""
    if top_k == 0:
        return np.empty(0, dtype=np.uint32)
    return np.argsort(-scores, kind="stable")[:top_k].astype(np.uint32)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

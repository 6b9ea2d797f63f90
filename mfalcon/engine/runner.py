"""Runs one job on the device: finds or makes the KV state, scores, blends, sorts. Lanes may run several at once."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from mfalcon.algorithm import append, score
from mfalcon.engine.job import Job, PrefillJob, RankJob
from mfalcon.engine.recall import Recalled
from mfalcon.errors import DeadlineExceeded, EngineFailure
from mfalcon.kv import KVState
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.heads import blend_weights
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.models.served import ServedModel
from mfalcon.state.predictor import Predictor
from mfalcon.state.store import StateStore
from mfalcon.types import CacheInfo, CacheSource, Events, Positions, RankResult, Timings, no_events
from mfalcon.window import window_start

_SMALL_EVENTS = 32
"""New events of a request that is still small: fewer than one tile of rows for each core."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The KV state that a request scores against, and what it took to get it."""

    state: KVState
    cache: CacheInfo
    state_s: float
    encode_s: float


class Runner:
    """A model on its device, with its item table and its states."""

    def __init__(
        self,
        served: ServedModel,
        items: ItemTable,
        store: StateStore[KVState],
        microbatch: int,
        version: str,
        predictor: Predictor | None = None,
        small_candidates: int = 0,
    ) -> None:
        self._served = served
        self._model = model = served.model
        self._items = items
        self._store = store
        self._microbatch = microbatch
        self._version = version
        self._predictor = predictor or Predictor()
        self._small_candidates = small_candidates
        self._device = model.items.id.weight.device
        self._tasks = tuple(task.name for task in model.config.tasks)
        self._blend = np.array(blend_weights(model.config.tasks, model.config.blend), dtype=np.float64)

    def rank(self, job: RankJob) -> RankResult:
        """Score the candidates of a request. Raises DeadlineExceeded between encoding and scoring if it is too late."""
        began = time.monotonic()
        request = job.request
        recalled = job.recalled
        encoded = self._encode(recalled, request.recent_events)
        if job.deadline is not None and time.monotonic() > job.deadline:
            raise DeadlineExceeded("the deadline passed while the history was being encoded")
        scoring = time.monotonic()
        rows = self._items.rows(request.candidates)
        codes = context_codes(self._model.config.context_features, request.context, request.request_time_ms)
        targets = Targets(torch.from_numpy(rows).to(self._device), torch.from_numpy(codes).to(self._device))
        with encoded.state.pinned():
            out = score(self._served, encoded.state, targets, request.request_time_ms, self._microbatch)
        by_task = np.ascontiguousarray(out.to("cpu", torch.float64).numpy().T)
        with np.errstate(over="ignore"):
            scores, task_scores = (self._blend @ by_task).astype(np.float32), by_task.astype(np.float32)
        if not (np.isfinite(scores).all() and np.isfinite(task_scores).all()):
            raise EngineFailure("the model gave a score that is not a finite number")
        top = best_first(scores, request.top_k)
        ended = time.monotonic()
        timings = Timings(
            queue_us=_us(began - job.queued),
            state_us=_us(recalled.seconds + encoded.state_s),
            encode_us=_us(encoded.encode_s),
            score_us=_us(ended - scoring),
            total_us=_us(ended - job.accepted),
        )
        return RankResult(
            scores=scores,
            tasks=self._tasks,
            task_scores=task_scores,
            top=top,
            model_version=self._version,
            cache=encoded.cache,
            timings=timings,
            history_len=len(recalled.history),
            stale=recalled.stale,
            unknown=np.flatnonzero(rows == UNKNOWN_ROW).astype(np.uint32),
        )

    def prefill(self, job: PrefillJob) -> CacheInfo:
        """Bring a user's state up to date."""
        return self._encode(job.recalled, no_events()).cache

    def is_small(self, job: Job) -> bool:
        """Whether a job is better done on one core beside others than on all cores. Any thread may ask."""
        if not isinstance(job, RankJob) or len(job.request.candidates) > self._small_candidates:
            return False
        log = job.recalled.history
        start = self._window_start(len(log), log.base)
        new = len(log) - start - self._store.peek(log, start) + len(job.request.recent_events)
        return new <= _SMALL_EVENTS

    def forget(self, user: bytes | None) -> None:
        """Erase a user's states, or everybody's."""
        if user is None:
            self._store.clear()
        else:
            self._store.forget(user)

    def _encode(self, recalled: Recalled, recent: Events) -> Encoded:
        """The state of the window of history and recent events. The history's part is kept in the store, the rest is
        not.

        If the recent events move the window's start, the history's state is of no use to this request and left alone.
        """
        began = time.monotonic()
        log = recalled.history
        start = self._window_start(len(log) + len(recent), log.base)
        shared = self._model.prefix_stable and start == self._window_start(len(log), log.base)
        found = self._store.acquire(log, start, recalled.fetched) if shared else None
        looked_up = time.monotonic()
        state = found.state if found else self._served.empty_state()
        reused = state.num_tokens
        if shared:
            stop = found.stop if found else start
            if stop < len(log):
                state = self._append(state, log.since(stop))
                self._store.put(log, start, state)
            state = self._append(state, recent)
        else:
            kept = log.since(start) if start < len(log) else no_events()
            state = self._append(state, np.concatenate([kept, recent[max(0, start - len(log)) :]]))
        source = found.source if found else CacheSource.NONE
        cache = CacheInfo(source, reused, state.num_tokens - reused)
        return Encoded(state, cache, looked_up - began, time.monotonic() - looked_up)

    def _window_start(self, history_len: int, base: int) -> int:
        """The window rule; a log that was cut for a model with a shorter window begins where it begins."""
        config = self._model.config
        return max(base, window_start(history_len, config.max_history, config.window_chunk))

    def _append(self, state: KVState, events: Events) -> KVState:
        if not len(events):
            return state
        began = time.monotonic()
        with state.pinned():
            longer = append(self._served, state, event_tokens(events, self._items, self._device))
        new = longer.num_tokens - state.num_tokens
        self._predictor.encode.observe(state.num_tokens, new, time.monotonic() - began)
        return longer


def best_first(scores: np.ndarray, top_k: int) -> Positions:
    """Positions of the top_k highest scores, best first, ties by position."""
    if top_k == 0:
        return np.empty(0, dtype=np.uint32)
    return np.argsort(-scores, kind="stable")[:top_k].astype(np.uint32)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

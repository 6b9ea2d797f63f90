"""Runs one job on the device: finds or makes the KV state, scores, blends, sorts. For the device thread alone."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from mfalcon.algorithm import append, prefill, score
from mfalcon.engine.job import PrefillJob, RankJob
from mfalcon.errors import DeadlineExceeded, EngineFailure
from mfalcon.kv import KVState, empty_state
from mfalcon.models.base import EventTokens, Ranker, Targets, context_codes, event_tokens
from mfalcon.models.heads import blend_weights
from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.state.history import History
from mfalcon.state.store import StateStore
from mfalcon.types import CacheInfo, CacheSource, Events, Positions, RankResult, Timings, no_events
from mfalcon.window import window_start


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
        self, model: Ranker, items: ItemTable, store: StateStore[KVState], microbatch: int, version: str
    ) -> None:
        self._model = model
        self._items = items
        self._store = store
        self._microbatch = microbatch
        self._version = version
        self._device = model.items.id.weight.device
        self._tasks = tuple(task.name for task in model.config.tasks)
        self._blend = np.array(blend_weights(model.config.tasks, model.config.blend), dtype=np.float64)

    def rank(self, job: RankJob) -> RankResult:
        """Score the candidates of a request. Raises DeadlineExceeded between encoding and scoring if it is too late."""
        began = time.monotonic()
        request = job.request
        encoded = self._encode(job.log, request.recent_events)
        if job.deadline is not None and time.monotonic() > job.deadline:
            raise DeadlineExceeded("the deadline passed while the history was being encoded")
        scoring = time.monotonic()
        rows = self._items.rows(request.candidates)
        codes = context_codes(self._model.config.context_features, request.context, request.request_time_ms)
        targets = Targets(torch.from_numpy(rows).to(self._device), torch.from_numpy(codes).to(self._device))
        out = score(self._model, encoded.state, targets, request.request_time_ms, self._microbatch)
        by_task = np.ascontiguousarray(out.to("cpu", torch.float64).numpy().T)
        with np.errstate(over="ignore"):
            scores, task_scores = (self._blend @ by_task).astype(np.float32), by_task.astype(np.float32)
        if not (np.isfinite(scores).all() and np.isfinite(task_scores).all()):
            raise EngineFailure("the model gave a score that is not a finite number")
        top = best_first(scores, request.top_k)
        ended = time.monotonic()
        timings = Timings(
            queue_us=_us(began - job.accepted),
            state_us=_us(encoded.state_s),
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
            history_len=len(job.log),
            unknown=np.flatnonzero(rows == UNKNOWN_ROW).astype(np.uint32),
        )

    def prefill(self, job: PrefillJob) -> CacheInfo:
        """Bring a user's state up to date."""
        return self._encode(job.log, no_events()).cache

    def forget(self, user_id: str) -> None:
        """Erase a user's states."""
        self._store.forget(user_id)

    def _encode(self, log: History, recent: Events) -> Encoded:
        """The state of the window of log and recent events. The log's part is kept in the store, the rest is not.

        If the recent events move the window's start, the log's state is of no use to this request and left alone.
        """
        began = time.monotonic()
        start = self._window_start(len(log) + len(recent))
        shared = self._model.prefix_stable and start == self._window_start(len(log))
        found = self._store.acquire(log, start) if shared else None
        looked_up = time.monotonic()
        state = found.state if found else empty_state(self._model.kv_shape())
        reused = state.num_tokens
        if shared:
            stop = found.stop if found else start
            if stop < len(log):
                state = self._append(state, log.events[stop:])
                self._store.put(log, start, state)
            state = self._append(state, recent)
        else:
            state = self._append(state, np.concatenate([log.events[start:], recent[max(0, start - len(log)) :]]))
        source = found.source if found else CacheSource.NONE
        cache = CacheInfo(source, reused, state.num_tokens - reused)
        return Encoded(state, cache, looked_up - began, time.monotonic() - looked_up)

    def _window_start(self, history_len: int) -> int:
        config = self._model.config
        return window_start(history_len, config.max_history, config.window_chunk)

    def _append(self, state: KVState, events: Events) -> KVState:
        return append(self._model, state, event_tokens(events, self._items, self._device)) if len(events) else state


def best_first(scores: np.ndarray, top_k: int) -> Positions:
    """Positions of the top_k highest scores, best first, ties by position."""
    if top_k == 0:
        return np.empty(0, dtype=np.uint32)
    return np.argsort(-scores, kind="stable")[:top_k].astype(np.uint32)


def measure_microbatch(model: Ranker, sizes: tuple[int, ...] = (64, 128, 256, 512)) -> int:
    """The fastest microbatch for this model on this machine, timed once on a full window of zeros."""
    config = model.config
    num_targets = 2 * max(sizes)
    device = model.items.id.weight.device
    zeros = torch.zeros(max(num_targets, config.max_history), dtype=torch.int64, device=device)
    events = EventTokens(*(zeros[: config.max_history],) * 4)
    targets = Targets(zeros[:num_targets], zeros[: len(config.context_features)])
    state = prefill(model, events)
    seconds = {}
    for size in sizes:
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            score(model, state, targets, 0, size)
            best = min(best, time.perf_counter() - began)
        seconds[size] = best
    return min(seconds, key=seconds.__getitem__)


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

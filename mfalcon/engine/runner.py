"""Runs requests on the device, a slice at a time: finds or makes the KV states, scores, blends, sorts. Several may run
at once; a batch of requests of different users is one computation.
"""

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from kernels.paged import to_device
from mfalcon.algorithm import Scoring, read, score_all
from mfalcon.backends.events import ServedEvents
from mfalcon.backends.select import Served
from mfalcon.best_first import best_first
from mfalcon.engine.clock import clock_of
from mfalcon.engine.encoding import Encoded, Encoder, alike
from mfalcon.engine.job import Forecast, RankJob
from mfalcon.engine.parts import Parts
from mfalcon.engine.progress import Progress, Slice
from mfalcon.engine.slices import fitting
from mfalcon.errors import DeadlineExceeded, EngineFailure, MFalconError
from mfalcon.features.counters import LikeRule
from mfalcon.features.provider import Asked
from mfalcon.graph.live import LiveGraph
from mfalcon.history.history import History
from mfalcon.items.live import LiveItems
from mfalcon.kvcache.cache import KVCache
from mfalcon.kvcache.item_rows import joined
from mfalcon.kvcache.planner import Predictor
from mfalcon.models.base import Ranker, Targets, context_codes, event_tokens
from mfalcon.models.items import ItemTable
from mfalcon.types import (
    NO_SCORE,
    CacheSource,
    Events,
    Floats,
    Ids,
    RankPart,
    RankRequest,
    RankResult,
    Timings,
    no_events,
    no_positions,
)
from mfalcon.window import WindowRule

_log = logging.getLogger(__name__)
_SMALL_EVENTS = 32
"""New events of a request that is still small: fewer than one tile of rows for each core."""
_SLICE_TOKENS, _SLICE_CANDIDATES = 64, 96
"""A slice is a multiple of so many tokens, or candidates, for each core: fewer do not fill the kernel's tiles, and read
all keys and values for little."""
_BATCHED_TOKENS = 512
"""The same of tokens where users are computed together; of candidates it is a microbatch there."""
_MOST_SLOWNESS = 16.0
_SMALL = "small"
"""The batch of requests that are done on one core each."""

_MOST_NAMED = 5
"""Candidates that an error names."""

Answer = RankResult | MFalconError


class Runner:
    """A model on its device, with its item table and its states."""

    def __init__(
        self,
        served: Served,
        items: ItemTable,
        cache: KVCache | None,
        microbatch: int,
        version: str,
        predictor: Predictor | None = None,
        small_candidates: int = 0,
        live: LiveItems | None = None,
        graph: LiveGraph | None = None,
    ) -> None:
        """On the thread that will compute, whose cores it counts. cache: of a model with KV states, else None. live,
        graph: the same items and their graph vectors, where they may change.
        """
        self._live = live or LiveItems(served, items)
        self._graph = graph or live_graph(served.model, items)
        self._served = served
        self._model = model = served.model
        self._cache = cache
        self._window = WindowRule(model.config.max_history, model.config.window_chunk)
        self._microbatch = microbatch
        self._version = version
        self._predictor = predictor or Predictor()
        self._small_candidates = small_candidates
        self._device = model.device
        self._cores = torch.get_num_threads()
        self._slice_candidates = microbatch if self.batched else _SLICE_CANDIDATES * self._cores
        self._encoder: Encoder | None = None
        self._per_event = 1
        if not isinstance(served, ServedEvents):
            assert cache is not None
            self._per_event = served.model.tokens_per_event
            slice_tokens = _BATCHED_TOKENS if self.batched else _SLICE_TOKENS * self._cores
            slice_events, clock = max(1, slice_tokens // self._per_event), clock_of(self._device)
            self._encoder = Encoder(served, cache, self._predictor.encode, clock, slice_events)
        self._like = LikeRule.of(model.config) if model.config.counters is not None else None
        self._tasks = model.output_names
        self._blend = np.array(model.blend, dtype=np.float64)

    @property
    def batched(self) -> bool:
        """Whether several users are better done as one computation than one after the other."""
        return self._served.batched

    def rank(self, job: RankJob) -> RankResult:
        """All of a request at once. Raises its error."""
        answer: Answer | None = None
        try:
            while answer is None:
                [answer] = self.advance([job], math.inf)
        finally:
            self.let_go(job)
        if isinstance(answer, MFalconError):
            raise answer
        return answer

    def forecast(self, job: RankJob) -> Forecast:
        """What a job will be, by what is cached now. Any thread may ask."""
        log, fetched = job.fetched_history.history, job.fetched_history.fetched
        log_len, num_recent, per_event = len(log), len(job.request.recent_events), self._per_event
        start = self._window.start(log_len + num_recent, log.base)
        num_events = log_len + num_recent - start
        held = 0 if self._cache is not None else num_events  # without states there is nothing to encode
        if self._cache is not None and start < log_len and not job.is_cold:
            held = self._cache.peek(log, start)
        if fetched is not None and fetched.key.start == start:
            held = max(held, fetched.key.stop - start)
        num_candidates, new = len(job.request.candidates), num_events - held
        cost, num_tokens, least = self._predictor, num_events * per_event, min(num_candidates, self._slice_candidates)
        encode_s = cost.encode.predict(held * per_event, new * per_event).seconds
        seconds = encode_s + cost.score.predict(num_tokens, num_candidates).seconds
        least_s = encode_s + cost.score.predict(num_tokens, least).seconds
        link = log.link(log_len) if not num_recent and not job.request.recompute else None
        slowness = min(max(1.0, cost.score.slowness), _MOST_SLOWNESS)
        if self.batched:
            return Forecast(seconds, (job.model,), link, least_s, slowness)
        is_small = num_candidates <= self._small_candidates and new <= _SMALL_EVENTS
        return Forecast(seconds, _SMALL if is_small else job.beside, None if new else link, least_s, slowness)

    def advance(self, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        """A slice of each request: what is predicted to take no longer than `seconds`, and at least a little. Its
        answer if that was the last one, else None. Raises what is wrong with any of them before it was known whose it
        is.
        """
        began = time.monotonic()
        works = [self._progress(job) for job in jobs]
        before = [len(work.history) + len(work.recent) for work in works]
        left = [seconds] * len(works)
        encoding, encoded = time.monotonic(), Encoded()
        try:
            if self._encoder is not None:
                self._encoder.encode(works, left, seconds, encoded)
            if not self.batched:
                encoded.settle()
            scoring = time.monotonic()
            counts = [
                self._num_candidates(work, left[index], is_first=left[index] == seconds)
                if work.is_encoded and job.due >= scoring and not work.is_spoilt
                else 0
                for index, (job, work) in enumerate(zip(jobs, works, strict=True))
            ]
            self._score(jobs, works, counts)
        finally:
            encode_s = encoded.settle()  # a device is waited for only now: it scored behind the encoding
        ended = time.monotonic()
        self._observe_scores(works, counts, ended - began - encode_s)
        for job, work, num_events, count in zip(jobs, works, before, counts, strict=True):
            if job.slices is not None:
                done = num_events - len(work.history) - len(work.recent)
                scored_at = max(scoring, encoding + encode_s)
                job.slices.append(Slice(began, encoding, scored_at, ended, done, count, len(jobs)))
        for work in works:
            work.encode_s += encode_s
            work.score_s += max(0.0, ended - max(scoring, encoding + encode_s))
        answers = [self._answer(job, work, ended) for job, work in zip(jobs, works, strict=True)]
        for job, work, answer in zip(jobs, works, answers, strict=True):
            if job.parts is not None and answer is None and job.progress is work:
                self._tell(job.parts, work)  # behind `so_far`, which has all that is told
        return answers

    def let_go(self, job: RankJob) -> None:
        """Give up what a job holds. What was encoded of the user's history is kept, for as long as there is room."""
        work, job.progress = job.progress, None
        if work is None:
            return
        if work.owner is self and self._cache is not None:
            is_longer = len(work.history) > 0 and work.kv.num_tokens > work.reused_tokens
            if work.keep is not None and is_longer and not work.is_spoilt:
                history, start, _ = work.keep
                stop = len(history) - len(work.history)
                self._cache.put_part(history, start, stop, work.kv, work.tags, work.made_at)
        work.release()

    def delete(self, user: bytes | None) -> None:
        """Erase a user's states, or everybody's."""
        if self._cache is not None:
            self._cache.delete(user)

    def check_device(self) -> None:
        """Raises if the device is lost: after an error in a kernel CUDA refuses everything, for good."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _progress(self, job: RankJob) -> Progress:
        """How far a job is; one that has not begun here begins. Raises Superseded."""
        if job.progress is not None and job.progress.owner is self:
            return job.progress
        work = self._begin(job)
        if job.parts is not None:
            job.parts.check(work)
        return work

    def _begin(self, job: RankJob) -> Progress:
        """Begin a job.

        It finds what there is of the window of history and recent events. The history's part will be kept in the cache,
        the rest not. If the recent events move the window's start, the state of what they leave of the history is kept
        too, beside that of the history's own window: the next request with recent events finds it, and so does the
        history when they are acknowledged.
        """
        began = time.monotonic()
        graph = self._graph.current
        items, recent, log = self._live.current, job.request.recent_events, job.fetched_history.history
        keys = self._model.target_rows(items.items, job.request.candidates)
        featuring = time.monotonic()
        dense = None
        if len(keys):
            rows = items.items.rows(keys) if items.items.is_open else keys
            dense = items.provider.features(Asked(job.request, rows, log.events, job.counted.numbers, graph.rows))
        features_s = time.monotonic() - featuring
        log_len = len(log)
        start = self._window.start(log_len + len(recent), log.base)
        source, none = CacheSource.NONE, no_events()
        if isinstance(self._served, ServedEvents):
            assert isinstance(items.served, ServedEvents)
            events = event_tokens(_window(log, recent, start), items.items, self._device)
            side = read(items.served, events, self._codes(job.request), job.request.request_time_ms)
            seconds = time.monotonic() - began - features_s
            job.progress = Progress(
                *(self, items, side, source, none, none, None, keys, dense, seconds),
                features_s=features_s,
                graph_version=graph.name,
            )
            return job.progress
        assert self._cache is not None
        state = self._served.empty_state()
        if not self._model.prefix_stable or (start > 0 and start >= log_len):  # nothing of the history to keep
            left = _window(log, recent, start)
            seconds = time.monotonic() - began - features_s
            job.progress = Progress(
                *(self, items, state, source, none, left, None, keys, dense, seconds),
                features_s=features_s,
                graph_version=graph.name,
            )
            return job.progress
        tags, now = items.tags(log, start), self._live.policy.clock()
        made_at = now
        found = None if job.is_cold else self._cache.lookup(log, start, job.fetched_history.fetched, tags)
        if found is not None:
            state, source = found.state, found.source
            now_tags, tags = tags, joined(found.tags, found.stop - start, tags)
            made_at = now if tags == now_tags else found.made_at  # as good as if it were made now
        stop = found.stop if found else start
        missing = log.since(stop) if stop < log_len else none
        keep = None if job.request.recompute else (log, start, self._window.start(log_len, log.base))
        seconds = time.monotonic() - began - features_s
        job.progress = Progress(
            *(self, items, state, source, missing, recent, keep, keys, dense, seconds, tags, made_at),
            features_s=features_s,
            graph_version=graph.name,
        )
        return job.progress

    def _num_candidates(self, work: Progress, seconds: float, *, is_first: bool) -> int:
        """Candidates to score in so many seconds, a few at least if nothing else was done in this slice."""
        cost, tokens = self._predictor.score, work.num_seen
        most, unit = len(work.rows) - work.num_scored, self._slice_candidates
        num = fitting(lambda num: cost.predict(tokens, num).seconds, most, unit, seconds)
        return min(unit, most) if not num and is_first else num

    def _score(self, jobs: Sequence[RankJob], works: Sequence[Progress], counts: Sequence[int]) -> None:
        """Score the next candidates of each, so many."""
        requests, scored = list[Scoring](), list[Progress]()
        for job, work, count in zip(jobs, works, counts, strict=True):
            if not count:
                continue
            time_ms = job.request.request_time_ms
            part = slice(work.num_scored, work.num_scored + count)
            dense = None if work.dense is None else self._to_device(work.dense[part])
            targets = Targets(self._to_device(work.rows[part]), self._codes(job.request), dense)
            requests.append(Scoring(work.state, targets, time_ms))
            scored.append(work)
        if not requests:
            return
        size = max(len(request.targets.rows) for request in requests)
        microbatch = self._microbatch
        if not self.batched and self._encoder is not None:  # a core takes a microbatch; else all share each one
            microbatch = min(microbatch, -(-size // torch.get_num_threads()))
        for served, indices in alike(scored):
            first, parts = 0, [requests[index] for index in indices]
            out = score_all(served, parts, microbatch).to("cpu", torch.float64).numpy()
            for work, request in zip([scored[index] for index in indices], parts, strict=True):
                stop = first + len(request.targets.rows)
                work.scores.append(out[first:stop])
                work.num_scored, first = work.num_scored + stop - first, stop

    def _answer(self, job: RankJob, work: Progress, now: float) -> Answer | None:
        """The answer to a job, None if it goes on."""
        job.left_s = self._left_s(work)
        if work.is_done or work.is_spoilt:
            return self._result(job, work)
        if job.due < now:
            return DeadlineExceeded("the deadline passed while the request was computed")
        if not (job.request.allow_partial and work.num_scored):
            return None
        answer = self._result(job, work)
        if not isinstance(answer, RankResult) or now >= job.cut_at:
            return answer
        job.so_far = answer
        return None

    def _observe_scores(self, works: Sequence[Progress], counts: Sequence[int], seconds: float) -> None:
        """Learn what scoring costs, and all that is done around it, of the whole device: on one core of two a second is
        half of one. Each has its share by what was expected of it.
        """
        cost, sizes = self._predictor.score, []
        for work, count in zip(works, counts, strict=True):
            if count:
                sizes.append((work.num_seen, count))
        seconds *= torch.get_num_threads() / self._cores
        if len(sizes) == 1:
            cost.observe(*sizes[0], seconds)
            return
        expected = [cost.predict(*size).seconds for size in sizes]
        for size, share in zip(sizes, expected, strict=True):
            cost.observe(*size, seconds * share / sum(expected))

    def _left_s(self, work: Progress) -> float:
        """What is predicted of the rest."""
        num_events = len(work.history) + len(work.recent)
        total = work.num_seen + num_events * self._per_event
        seconds = self._predictor.score.predict(total, len(work.rows) - work.num_scored).seconds
        return seconds + (self._encoder.seconds(work.num_seen, num_events) if self._encoder is not None else 0.0)

    def _result(self, job: RankJob, work: Progress) -> Answer | None:
        """The answer, for the candidates that are scored. None where a score is not a finite number and a state was
        reused: that is deleted, and all of the request is done again without it. What is not finite then either is the
        failure of those candidates alone.
        """
        fetched_history = job.fetched_history
        if work.is_spoilt:
            if self._is_doubtful(job, work):
                return self._begin_again(job, work)
            return EngineFailure("this model gives the history keys or values that are not finite numbers")
        by_task = np.concatenate(work.scores).T if work.scores else np.empty((len(self._tasks), 0))
        scores, task_scores = self._blended(by_task)
        is_finite = np.isfinite(scores) & np.isfinite(task_scores).all(0)
        if not is_finite.all():
            if self._is_doubtful(job, work):
                return self._begin_again(job, work)
            wrong = job.request.candidates[: work.num_scored][~is_finite]
            ids = ", ".join(map(str, wrong[:_MOST_NAMED])) + (", ..." if len(wrong) > _MOST_NAMED else "")
            what = f"gives {len(wrong)} of {len(is_finite)} candidates a score that is no finite number: {ids}"
            _log.error("model version %s %s", self._version, what, extra={"request_id": job.request_id})
            if not is_finite.any():
                return EngineFailure(f"the model {what}")
            scores[~is_finite] = task_scores[:, ~is_finite] = NO_SCORE
        now, like = time.monotonic(), self._like
        timings = Timings(
            queue_us=max(0, _us(now - job.queued - work.state_s - work.features_s - work.encode_s - work.score_s)),
            state_us=_us(fetched_history.seconds + work.state_s),
            encode_us=_us(work.encode_s),
            score_us=_us(work.score_s),
            total_us=_us(now - job.accepted),
            features_us=_us(work.features_s),
        )
        return RankResult(
            scores=scores,
            tasks=self._tasks,
            task_scores=task_scores,
            top=best_first(scores, job.request.top_k),
            model_version=self._version,
            items_version=work.items.name,
            graph_version=work.graph_version,
            cache=work.cache,
            timings=timings,
            history_len=len(fetched_history.history),
            history_version=fetched_history.history.version,
            stale=fetched_history.stale,
            unknown=np.flatnonzero(work.items.items.unknown(work.rows[: work.num_scored])).astype(np.uint32),
            failed=np.flatnonzero(~is_finite).astype(np.uint32),
            counters_version=0 if like is None else job.counted.versions.get(like, 0),
            counters_stale=like is not None and (like in job.counted.stale or like not in job.counted.numbers),
        )

    def _tell(self, parts: Parts, work: Progress) -> None:
        """Tell what was scored in this slice. From a score on that is no finite number nothing is told: it may be the
        state's fault, and then all is done again.
        """
        if parts.has_ended or work.is_spoilt or not work.scores:
            return
        before = work.num_scored - len(work.scores[-1])
        by_task = work.scores[-1][max(0, parts.num_told - before) :].T
        if not by_task.shape[1]:  # it was told before the request began again
            return
        scores, task_scores = self._blended(by_task)
        if not (np.isfinite(scores).all() and np.isfinite(task_scores).all()):
            parts.has_ended = True
            return
        first = parts.num_told
        unknown = work.items.items.unknown(work.rows[first : first + len(scores)])
        part = RankPart(
            first=first,
            scores=scores,
            task_scores=task_scores,
            unknown=(first + np.flatnonzero(unknown)).astype(np.uint32),
            failed=no_positions(),
            tasks=self._tasks,
            model_version=self._version,
        )
        parts.add(part, work)

    def _blended(self, by_task: np.ndarray) -> tuple[Floats, Floats]:
        """The scores of candidates, [num], and those of each task, [num_tasks, num]: a candidate's are the same to the
        bit among whichever others, which a product of matrices does not promise.
        """
        with np.errstate(over="ignore"):
            scores = np.zeros(by_task.shape[1])
            for weight, of_task in zip(self._blend, by_task, strict=True):
                scores += weight * of_task
            return scores.astype(np.float32), by_task.astype(np.float32, order="C")

    def _is_doubtful(self, job: RankJob, work: Progress) -> bool:
        """Whether a state that the request reused may be why it cannot be answered."""
        return not job.is_cold and work.reused_tokens > 0 and self._cache is not None

    def _begin_again(self, job: RankJob, work: Progress) -> Answer | None:
        """Delete the state that a request reused, and do the request without it. An error where scores by that state
        were told already.
        """
        assert self._cache is not None
        what = "model version %s: a KV state of a user spoils scores; it is deleted and made again"
        _log.error(what, self._version, extra={"request_id": job.request_id})
        self._cache.delete(job.user)
        work.release()
        job.progress, job.so_far, job.is_cold, job.left_s = None, None, True, self.forecast(job).seconds
        if job.parts is not None and job.parts.num_told:
            return job.parts.superseded("a KV state of this user was found spoilt, and deleted,")
        return None

    def _codes(self, request: RankRequest) -> torch.Tensor:
        """Of the request's context, [num_features]."""
        features = self._model.config.context_features
        return self._to_device(context_codes(features, request.context, request.request_time_ms))

    def _to_device(self, numbers: Ids | Floats) -> torch.Tensor:
        return to_device(numbers, self._device)


def live_graph(model: Ranker, items: ItemTable, fingerprint: str = "") -> LiveGraph:
    """The graph vectors of a model, as its checkpoint has them."""
    own = None if model.graph is None else model.graph.rows()
    return LiveGraph(own, items, fingerprint, model.config.name)


def _window(log: History, recent: Events, start: int) -> Events:
    """Events from a start on, of the log and those behind it."""
    kept = log.since(start) if start < len(log) else no_events()
    return np.concatenate([kept, recent[max(0, start - len(log)) :]])


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

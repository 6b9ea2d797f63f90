"""From a request to what one model answers it: the history, a forecast, the device, and what is counted of it."""

import asyncio
import math
import time
from concurrent.futures import CancelledError
from dataclasses import replace

from opentelemetry import trace

from mfalcon.capture.seen import Seen
from mfalcon.engine.answers import Answers
from mfalcon.engine.device import Device
from mfalcon.engine.job import RankJob, prefill_job
from mfalcon.engine.job_spans import explained
from mfalcon.engine.job_spans import tell as tell_spans
from mfalcon.engine.parts import Parts
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.errors import DeadlineExceeded, StorageUnavailable
from mfalcon.history.history import Reading
from mfalcon.history.late_events import recent_behind
from mfalcon.kvcache.fetch import Fetched
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.scope import Scope, current
from mfalcon.spans import exemplar, is_traced
from mfalcon.types import CacheInfo, CacheSource, LateEvents, RankPart, RankRequest, RankResult, TellPart, Timings


class Jobs:
    """Has the device do what is asked of a ranker. Lives on the event loop.

    Its methods raise Overloaded, DeadlineExceeded, ShuttingDown or EngineFailure, and StorageUnavailable when the log
    cannot be asked. deadline: time.monotonic() seconds. reading: of the event log, where somebody has it already.
    """

    def __init__(self, device: Device, metrics: ServerMetrics, late_events: LateEvents = "reject") -> None:
        """late_events: what becomes of recent events that are older than the log, see `recent_behind`."""
        self._device = device
        self._late_events = late_events
        self._metrics = metrics
        self._answers = Answers()

    async def rank(
        self,
        ranker: LoadedRanker,
        request: RankRequest,
        deadline: float | None,
        *,
        reading: Reading | None = None,
        beside: object = None,
        reserve_s: float = 0.0,
        seen: Seen | None = None,
        tell: TellPart | None = None,
    ) -> RankResult:
        """Score a request's candidates. beside, reserve_s: see `RankJob`. seen: is told what the model reads. tell: is
        called, on this loop, with scores as they come; what it was not told is in the answer, as are all. Raises
        InvalidInput for recent events older than the log.
        """
        accepted, loop = time.monotonic(), asyncio.get_running_loop()
        with self._metrics.device.answering(ranker.name, deadline):
            with self._device.coming(deadline):
                fetched = await ranker.fetcher.open(
                    request.user_id,
                    deadline,
                    self._device.expected_wait(),
                    len(request.recent_events),
                    reading,
                    log_only=request.recompute,
                )
            noting = current()
            if noting is not None:
                _note(noting, fetched)
            recent = recent_behind(fetched.history, request.recent_events, self._late_events)
            if recent is not request.recent_events:
                request = replace(request, recent_events=recent)
            job = RankJob(
                request,
                fetched,
                deadline,
                ranker.name,
                counted=ranker.counted(request.candidates, fetched),
                accepted=accepted,
                beside=beside,
                reserve_s=reserve_s,
                is_cold=request.recompute,
                slices=[] if is_traced() else None,
                parts=None if tell is None else _parts_for(tell, loop),
            )
            if seen is not None:
                seen.note(fetched.history, job.counted)
            asked = time.monotonic()
            try:
                result = await self._answer(job)
            finally:
                now = time.monotonic()
                if job.slices is not None:
                    loop.call_soon(tell_spans, job, accepted, now)  # behind the answer
                del job  # see `_answer`
                if noting is not None:
                    noting.device_s = now - asked
            ranker.note(request.user_id)
            ranker.count(None if request.recompute else result.cache, result.num_scored, len(result.failed))
            if result.num_scored < len(request.candidates):
                self._metrics.device.partial.labels(ranker.name).inc()
            self._count_stages(ranker.name, fetched, result.timings)
            if is_traced():
                told = explained(result, ranker.name)
                told["mfalcon.state.decision"] = fetched.decision.explain() if fetched.decision else "nothing to decide"
                trace.get_current_span().set_attributes(told)
        return result

    async def prefill(
        self, ranker: LoadedRanker, user_id: str, deadline: float | None, *, reading: Reading | None = None
    ) -> CacheInfo:
        """Encode the user's history ahead of a request. Of a model that encodes none there is nothing to do, and the
        answer says so: nothing was reused or encoded.
        """
        if ranker.info.reads_last_events:
            self._device.check_open()
            return CacheInfo(CacheSource.NONE, 0, 0)
        with self._metrics.device.answering(ranker.name, deadline):
            with self._device.coming(deadline):
                fetched = await ranker.fetcher.open(user_id, deadline, self._device.expected_wait(), reading=reading)
            if fetched.stale:
                raise StorageUnavailable("the event log cannot be asked, so there is nothing newer to encode")
            job = prefill_job(fetched, deadline, ranker.name)
            try:
                cache = (await self._answer(job)).cache
            finally:
                del job  # see `_answer`
        ranker.count(cache)
        return cache

    async def _answer(self, job: RankJob) -> RankResult:
        future, timer = job.future, None
        try:
            self._device.submit(job)
            if job.cut_at < math.inf:
                timer = asyncio.get_running_loop().call_later(job.cut_at - time.monotonic(), job.cut)
            return await self._answers.of(future)
        except CancelledError:  # not asyncio's: `RankJob.cut`
            if job.so_far is None:  # those scores were spoilt, as is known by now
                raise DeadlineExceeded("the deadline passed while the request was done again") from None
            return job.so_far
        finally:
            if timer is not None:
                timer.cancel()
            if future.cancelled():
                self._device.discard(job)
            # An error holds this frame: if that held the error too, its pages would wait for the GC.
            del job, future, timer

    def _count_stages(self, model: str, fetched: Fetched, timings: Timings) -> None:
        took, fetched_us, shown = self._metrics.stages.took, 1e6 * fetched.seconds, exemplar()
        took(model, "log", fetched.log_seconds, shown)
        took(model, "fetch", fetched.seconds - fetched.log_seconds, shown)
        took(model, "queue", timings.queue_us / 1e6, shown)
        if timings.features_us:
            took(model, "features", timings.features_us / 1e6, shown)
        took(model, "encode", max(0.0, timings.state_us - fetched_us + timings.encode_us) / 1e6, shown)
        took(model, "score", timings.score_us / 1e6, shown)


def _parts_for(tell: TellPart, loop: asyncio.AbstractEventLoop) -> Parts:
    """What is told on this loop, from whichever thread."""

    def hand_over(part: RankPart) -> None:
        loop.call_soon_threadsafe(tell, part)

    return Parts(hand_over)


def _note(scope: Scope, fetched: Fetched) -> None:
    """What is known of a request before the device is asked. Of an ensemble's members the last one is noted."""
    scope.history_len = len(fetched.history)
    scope.log_s, scope.fetch_s = fetched.log_seconds, fetched.seconds - fetched.log_seconds
    scope.decision = fetched.decision.explain() if fetched.decision else ""

"""The engine: four verbs over the users' histories, the models in the catalog and the device that computes them.

Every accepted request gets exactly one answer: a result, an error of its own, a deadline or a shutdown.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError

from opentelemetry import trace

from mfalcon.engine.answers import Answers
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device, Runners
from mfalcon.engine.handover import hand_over
from mfalcon.engine.histories import Histories
from mfalcon.engine.job import RankJob, prefill_job
from mfalcon.engine.reload import Reloader, ReloadOptions
from mfalcon.engine.reranking import Reranking
from mfalcon.errors import DeadlineExceeded, ShuttingDown, StorageUnavailable
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.history.history import check_order
from mfalcon.kvcache.fetch import Fetched
from mfalcon.load import Load
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import CacheInfo, Events, ModelInfo, RankRequest, RankResult, Timings

_tracer = trace.get_tracer("mfalcon")


class Engine:
    """Answers requests. Its methods belong to one event loop; who builds it owns the parts until `close`."""

    def __init__(
        self,
        histories: Histories,
        device: Device,
        catalog: Catalog,
        metrics: ServerMetrics,
        reload: ReloadOptions | None = None,
    ) -> None:
        """Starts the device on the models of the catalog."""
        self.histories = histories
        self.device = device
        self.catalog = catalog
        self.metrics = metrics
        self._answers = Answers()
        self._reranking = Reranking(metrics)
        self._reloader = Reloader(catalog, device, histories, metrics.states, reload or ReloadOptions())
        histories.listen(self._deleted_elsewhere)
        device.start(self._warm)

    @property
    def model(self) -> ModelInfo:
        """What clients may know of the model that answers where none is named."""
        return self.catalog.default.info

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, the default one first."""
        return tuple(ranker.info for ranker in self.catalog)

    @property
    def ready(self) -> bool:
        """True once the models are warm and until the engine closes."""
        return self.device.ready

    @property
    def load(self) -> Load:
        """How busy the device is."""
        return self.device.load()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Block until warm. Raises EngineFailure if the device thread could not start."""
        self.device.wait_ready(timeout)

    def lost(self, stall_s: float) -> str | None:
        """Why nobody will be answered any more; see `Device.lost`."""
        return self.device.lost(stall_s)

    async def start(self) -> None:
        """Begin what runs beside the requests. Raises ConfigError."""
        await self.histories.start()

    async def reach_redis(self) -> None:
        """Return once Redis has answered, at once without one. Raises ConfigError if it would evict the log."""
        if self.histories.redis is not None:
            await self.histories.redis.reach()

    async def rank(self, request: RankRequest, deadline: float | None, model: str = "") -> RankResult:
        """Score a request's candidates by a model, the default one for "". deadline: time.monotonic() seconds.

        Raises UnknownModel, Overloaded, DeadlineExceeded, ShuttingDown or EngineFailure; InvalidInput for recent events
        older than the log; StorageUnavailable when the log cannot be asked.
        """
        accepted = time.monotonic()
        ranker = self.catalog.get(model)
        with _tracer.start_as_current_span("rank") as span, self.metrics.device.answering(ranker.name, deadline):
            with self.device.coming(deadline):
                fetched = await ranker.fetcher.open(
                    request.user_id, deadline, self.device.expected_wait(), len(request.recent_events)
                )
            check_order(fetched.history, request.recent_events, "recent_events")
            job = RankJob(request, fetched, deadline, ranker.name, accepted=accepted)
            reply_by = job.reply_by
            try:
                result = await self._answer(job)
            finally:
                del job  # see `_answer`
            ranker.note(request.user_id)
            ranker.count(result.cache, len(result.failed))
            if result.num_scored < len(request.candidates):
                self.metrics.device.partial.labels(ranker.name).inc()
            self._count_stages(ranker.name, fetched, result.timings)
            if request.rerank is not None and request.top_k:
                result = await self._reranking.rerank(ranker, request.rerank, request, result, reply_by)
            if span.is_recording():
                span.set_attributes(_explained(result, fetched, ranker.name))
        return result

    async def append_events(
        self, user_id: str, events: Events, expected_len: int | None, deadline: float | None = None
    ) -> int:
        """Acknowledge events: when this returns they are in the log. Returns the history's new length.

        Raises LengthMismatch, InvalidInput or ShuttingDown, and then nothing was written; StorageUnavailable says
        whether they may have been.
        """
        if self.device.closed:
            raise ShuttingDown("the server is shutting down")
        return await self.histories.log.append(user_id, events, expected_len, deadline)

    async def prefill(self, user_id: str, deadline: float | None, model: str = "") -> CacheInfo:
        """Encode the user's history by a model ahead of a request. Raises as `rank` does."""
        ranker = self.catalog.get(model)
        with self.metrics.device.answering(ranker.name, deadline):
            with self.device.coming(deadline):
                fetched = await ranker.fetcher.open(user_id, deadline, self.device.expected_wait())
            if fetched.stale:
                raise StorageUnavailable("the event log cannot be asked, so there is nothing newer to encode")
            job = prefill_job(fetched, deadline, ranker.name)
            try:
                cache = (await self._answer(job)).cache
            finally:
                del job  # see `_answer`
        ranker.count(cache)
        return cache

    async def delete_user(self, user_id: str, deadline: float | None = None) -> None:
        """Delete the history and every state of every model; when this returns none is left here or in Redis, and no
        work in flight can restore one. A caller that leaves does not stop it.

        Raises StorageUnavailable or ShuttingDown: ask again.
        """
        self.device.check_open()
        deleting = asyncio.create_task(self._delete(user_id, deadline))
        deleting.add_done_callback(lambda task: task.cancelled() or task.exception())  # its caller may be gone
        await asyncio.shield(deleting)

    async def reload(self, model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        """Serve another checkpoint under the name of a model, without losing a request; see `Reloader.reload`."""
        return await self._reloader.reload(model, load)

    async def hand_over(self, seconds: float, most_bytes: int) -> None:
        """See `engine/handover.py`. Requests go on meanwhile."""
        if seconds and self.histories.is_shared:
            await hand_over(self.catalog, seconds, most_bytes)

    async def close(self) -> None:
        """Accept nothing more, answer what is queued with ShuttingDown, and wait for the step in progress."""
        self.device.close(ShuttingDown("the server shut down before this request was reached"))
        await self._reloader.close()
        await asyncio.to_thread(self.device.join)
        await self._reranking.close()
        for ranker in self.catalog:
            await ranker.close()
        await self.histories.close()

    async def _delete(self, user_id: str, deadline: float | None) -> None:
        """The log first: from then on nothing that was made of it is kept anywhere."""
        histories, user = self.histories, user_hash(user_id)
        generation = await histories.log.delete(user_id, deadline)
        histories.tombstones.add(generation)
        try:
            deleted = self.device.delete(user)
            if histories.redis is not None:
                await histories.redis.delete(Deletion(user, generation))
            await asyncio.wrap_future(deleted)
        except ShuttingDown as error:
            raise ShuttingDown(str(error), may_be_done=True) from error
        self.metrics.states.deleted.labels("us").inc()

    def _deleted_elsewhere(self, deletion: Deletion | None) -> None:
        """A user was deleted by another replica, or (None) any may have been; of ours we hear a second time."""
        tombstones = self.histories.tombstones
        if deletion is not None:
            if deletion.generation in tombstones:
                return
            tombstones.add(deletion.generation)
        with contextlib.suppress(ShuttingDown):
            self.device.delete(None if deletion is None else deletion.user)
        self.metrics.states.deleted.labels("replica" if deletion else "gap").inc()

    async def _answer(self, job: RankJob) -> RankResult:
        future, timer = job.future, None
        try:
            self.device.submit(job)
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
                self.device.discard(job)
            # An error holds this frame: if that held the error too, its pages would wait for the GC.
            del job, future, timer

    def _count_stages(self, model: str, fetched: Fetched, timings: Timings) -> None:
        took, fetched_us = self.metrics.stages.took, 1e6 * fetched.seconds
        took(model, "log", fetched.log_seconds)
        took(model, "fetch", fetched.seconds - fetched.log_seconds)
        took(model, "queue", timings.queue_us / 1e6)
        took(model, "encode", max(0.0, timings.state_us - fetched_us + timings.encode_us) / 1e6)
        took(model, "score", timings.score_us / 1e6)

    def _warm(self) -> Runners:
        for ranker in self.catalog:
            ranker.prove()
        return {ranker.name: ranker.warm() for ranker in self.catalog}


def _explained(result: RankResult, fetched: Fetched, model: str) -> dict[str, str | int | bool]:
    """What a trace tells of a request; never its user."""
    return {
        "mfalcon.model": model,
        "mfalcon.candidates": len(result.scores),
        "mfalcon.history_len": result.history_len,
        "mfalcon.stale": result.stale,
        "mfalcon.state.decision": fetched.decision.explain() if fetched.decision else "nothing to decide",
        "mfalcon.state.source": result.cache.source.name.lower(),
        "mfalcon.state.reused_tokens": result.cache.reused_tokens,
        "mfalcon.state.encoded_tokens": result.cache.encoded_tokens,
        "mfalcon.queue_us": result.timings.queue_us,
        "mfalcon.state_us": result.timings.state_us,
        "mfalcon.encode_us": result.timings.encode_us,
        "mfalcon.score_us": result.timings.score_us,
    }

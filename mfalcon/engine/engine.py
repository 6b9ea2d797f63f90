"""The engine: six verbs over the users' histories, the models in the catalog and the device that computes them.

Every accepted request gets exactly one answer: a result, an error of its own, a deadline or a shutdown.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from mfalcon.capture.seen import Captures
from mfalcon.engine.append_batch import append_each
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device, Runners
from mfalcon.engine.ensemble import EnsembleOptions
from mfalcon.engine.ensembles import Ensembles
from mfalcon.engine.graph_refreshes import GraphRefreshes
from mfalcon.engine.handover import hand_over
from mfalcon.engine.histories import Histories
from mfalcon.engine.interests import InterestStage
from mfalcon.engine.item_updates import ItemUpdates
from mfalcon.engine.jobs import Jobs
from mfalcon.engine.listing import NO_ITEMS, listed
from mfalcon.engine.pipeline import Pipeline
from mfalcon.engine.reading import read_page
from mfalcon.engine.reload import Reloader, ReloadOptions
from mfalcon.engine.reranking import Reranking
from mfalcon.errors import ShuttingDown, StorageUnavailable
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.history.chain import user_hash
from mfalcon.history.deletions import Deletion
from mfalcon.interests import Interests, InterestsRequest
from mfalcon.items.delta import Delta
from mfalcon.load import Load
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.rerank.language_model import LanguageModelOptions
from mfalcon.spans import within
from mfalcon.types import (
    Append,
    Appended,
    AppendOutcome,
    CacheInfo,
    HistoryPage,
    HistoryRequest,
    Items,
    ItemsRequest,
    ItemsUpdated,
    ModelInfo,
    RankRequest,
    RankResult,
    TellPart,
    UserAppend,
)

_log = logging.getLogger(__name__)


class Engine:
    """Answers requests. Its methods belong to one event loop; who builds it owns the parts until `close`."""

    def __init__(
        self,
        histories: Histories,
        device: Device,
        catalog: Catalog,
        metrics: ServerMetrics,
        reload: ReloadOptions | None = None,
        ensembles: Sequence[EnsembleOptions] = (),
        llm: LanguageModelOptions | None = None,
        capture: Captures | None = None,
    ) -> None:
        """Starts the device on the models of the catalog. capture: of a sample of the requests, if they are captured.
        Raises ConfigError for ensembles that these cannot be, and for a language model that cannot be asked from here.
        """
        self.histories = histories
        self.device = device
        self.catalog = catalog
        self.metrics = metrics
        self._capture = capture
        self._catching_up: asyncio.Task[None] | None = None
        self._jobs = Jobs(device, metrics, histories.options.late_events)
        self.ensembles = Ensembles(ensembles, catalog, self._jobs, metrics)
        self._reranking = Reranking(metrics, llm)
        self._interests = InterestStage(catalog, self._jobs, histories.tombstones)
        self._pipeline = Pipeline(catalog, self.ensembles, self._jobs, self._reranking, metrics)
        self._item_updates = ItemUpdates(catalog, device, metrics.items)
        self._graph_refreshes = GraphRefreshes(catalog, device, metrics.graph)
        self._reloader = Reloader(catalog, device, histories, metrics.states, reload or ReloadOptions(), self.ensembles)
        histories.listen(self._deleted_elsewhere, self._evicted)
        for ranker in catalog:
            ranker.count_items()
        device.start(self._warm)

    @property
    def model(self) -> ModelInfo:
        """What clients may know of the model that answers where none is named."""
        return self.catalog.default.info

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, the default one first, and then every ensemble."""
        return *(ranker.info for ranker in self.catalog), *(ensemble.info for ensemble in self.ensembles)

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
        await self.ensembles.start()
        if self._capture is not None:
            self._capture.start()
            await self._delete_missed(self._capture)

    async def reach_redis(self) -> None:
        """Return once Redis has answered, at once without one. Raises ConfigError if it would evict the log."""
        if self.histories.redis is not None:
            await self.histories.redis.reach()

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str = "",
        tell: TellPart | None = None,
    ) -> RankResult:
        """Score a request's candidates by a model or an ensemble, the default model for "". deadline: time.monotonic()
        seconds. tell: is called with scores as they come, before the answer that has them all; of an ensemble none come
        before it.

        Raises UnknownModel, Overloaded, DeadlineExceeded, ShuttingDown or EngineFailure; InvalidInput for recent events
        older than the log; StorageUnavailable when the log cannot be asked; for an ensemble TooFewMembers.
        """
        if request.retrieve is not None:
            return await self._interests.rank_retrieved(
                request, deadline, lambda retrieved: self.rank(retrieved, deadline, model)
            )
        if self._capture is None:
            return await self._pipeline.rank(request, deadline, model, tell=tell)
        seen = self._capture.begin(user_hash(request.user_id))
        result = await self._pipeline.rank(request, deadline, model, seen, tell)
        if seen is not None:
            # In the context of this request, once its answer is on its way.
            offer = self._capture.offer
            asyncio.get_running_loop().call_soon(offer, seen, self._info(model), request, result)
        return result

    async def interests(self, request: InterestsRequest, deadline: float | None, model: str = "") -> Interests:
        """A user's interests under conditions, and the items nearest to them. Raises as `rank` does, and InvalidInput
        for a model that ranks items, and for what is no condition of it.
        """
        with within("interests"):
            return await self._interests.answer(request, deadline, model)

    async def append_events(self, user_id: str, append: Append, deadline: float | None = None) -> Appended:
        """Acknowledge events: when this returns they are in the log.

        Raises HistoryMismatch, InvalidInput or ShuttingDown, and then nothing was written; StorageUnavailable says
        whether they may have been.
        """
        if self.device.closed:
            raise ShuttingDown("the server is shutting down")
        with within("append_events"):
            told = await self.histories.append(user_id, append, deadline)
        if not told.was_written:
            self.metrics.logs.appended.inc(len(append.events))
            for fate, positions in (
                ("inserted", told.inserted),
                ("clamped", told.clamped),
                ("discarded", told.discarded),
            ):
                self.metrics.logs.late.labels(fate).inc(len(positions))
        return told

    async def append_batch(self, appends: Sequence[UserAppend], deadline: float | None = None) -> list[AppendOutcome]:
        """Do appends of different users, each as `append_events` would. Returns what that would return or raise."""
        return await append_each(self.append_events, appends, deadline)

    async def get_history(self, request: HistoryRequest, deadline: float | None = None) -> HistoryPage:
        """A page of a user's history, see `engine/reading.py`. Raises HistoryMismatch, StorageUnavailable and
        DeadlineExceeded.
        """
        with within("get_history"):
            return await read_page(self.histories, self.catalog, request, deadline)

    async def items(self, request: ItemsRequest) -> Items:
        """Items of a model, or of an ensemble's first member here, with their titles; of one with no member here there
        are none. Raises UnknownModel.
        """
        ensemble = self.ensembles.get(request.model)
        if ensemble is not None and not ensemble.locals:
            return listed(NO_ITEMS, request)
        ranker = self.catalog.get(request.model if ensemble is None else ensemble.locals[0])
        return await asyncio.to_thread(lambda: listed(ranker.listed_items, request))

    async def prefill(
        self,
        user_id: str,
        deadline: float | None,
        model: str = "",
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        """Encode the user's history by a model, or by every member of an ensemble, ahead of a request. conditions: of
        a model that has any; the interests are computed ahead too, as of that time. Raises as `rank` does.
        """
        with within("prefill"):
            if conditions:
                return await self._interests.prepare(user_id, tuple(conditions), request_time_ms, deadline, model)
            if (ensemble := self.ensembles.get(model)) is not None:
                return await ensemble.prefill(user_id, deadline)
            return await self._jobs.prefill(self.catalog.get(model), user_id, deadline)

    async def delete_user(self, user_id: str, deadline: float | None = None) -> None:
        """Delete the history and every state of every model; when this returns none is left here or in Redis, what was
        captured of his requests here is unreadable, and no work in flight can restore any of it. A caller that leaves
        does not stop it.

        Raises StorageUnavailable or ShuttingDown: ask again.
        """
        self.device.check_open()
        deleting = asyncio.create_task(self._delete(user_id, deadline))
        deleting.add_done_callback(lambda task: task.cancelled() or task.exception())  # its caller may be gone
        with within("delete_user"):
            await asyncio.shield(deleting)

    async def reload(self, model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        """Serve another checkpoint under the name of a model, without losing a request; see `Reloader.reload`."""
        return await self._reloader.reload(model, load)

    async def update_items(self, model: str, delta: Delta) -> ItemsUpdated:
        """Serve a model with other item rows from the next step on; see `ItemUpdates.update`."""
        return await self._item_updates.update(model, delta)

    async def refresh_graph(self, model: str, refresh: GraphRefresh) -> None:
        """Serve a model with other graph vectors from the next step on; see `GraphRefreshes.refresh`."""
        await self._graph_refreshes.refresh(model, refresh)

    async def hand_over(self, seconds: float, most_bytes: int) -> None:
        """See `engine/handover.py`. Requests go on meanwhile."""
        if seconds and self.histories.is_shared:
            await hand_over(self.catalog, seconds, most_bytes)

    async def close(self) -> None:
        """Accept nothing more, answer what is queued with ShuttingDown, and wait for the step in progress."""
        self.device.close(ShuttingDown("the server shut down before this request was reached"))
        await self._reloader.close()
        await self._interests.close()
        await self.ensembles.close()
        await asyncio.to_thread(self.device.join)
        await self._reranking.close()
        if self._catching_up is not None:
            self._catching_up.cancel()
        if self._capture is not None:
            await self._capture.close()
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
            self._interests.delete(user)
            await histories.forget(user, generation)
            if histories.redis is not None:
                await histories.redis.delete(Deletion(user, generation))
            await asyncio.wrap_future(deleted)
            if self._capture is not None:
                await self._capture.delete(user, deadline)
        except (ShuttingDown, StorageUnavailable) as error:
            raise type(error)(str(error), may_be_done=True) from error
        self.metrics.states.deleted.labels("us").inc()

    def _deleted_elsewhere(self, deletion: Deletion | None) -> None:
        """A user was deleted by another replica, or (None) any may have been; of ours we hear a second time."""
        tombstones = self.histories.tombstones
        if deletion is not None:
            if deletion.generation in tombstones:
                return
            tombstones.add(deletion.generation)
        if self._capture is not None:
            if deletion is not None:
                self._capture.delete_soon(deletion.user)
            else:
                self._catching_up = asyncio.create_task(self._delete_missed(self._capture))
        self._interests.delete(None if deletion is None else deletion.user)
        with contextlib.suppress(ShuttingDown):
            self.device.delete(None if deletion is None else deletion.user)
        self.metrics.states.deleted.labels("replica" if deletion else "gap").inc()

    async def _delete_missed(self, capture: Captures) -> None:
        """Have what was captured of users unreadable whom another replica deleted while this one did not hear of it."""
        redis = self.histories.redis
        if redis is None or redis.deletions is None:
            return
        try:
            capture.delete_missed(await redis.deletions.retained())
        except StorageUnavailable as error:
            _log.warning("capture: users whom other replicas deleted meanwhile are not known: %s", error)

    def _evicted(self, deletion: Deletion) -> None:
        """The log on this machine has deleted a user to keep its bounds."""
        if self._capture is not None:
            self._capture.delete_soon(deletion.user)
        self._interests.delete(deletion.user)
        with contextlib.suppress(ShuttingDown):
            self.device.delete(deletion.user)
        self.metrics.states.deleted.labels("bounds").inc()

    def _info(self, model: str) -> ModelInfo:
        """Of a model or an ensemble, the default model for ""."""
        ensemble = self.ensembles.get(model)
        return ensemble.info if ensemble is not None else self.catalog.get(model).info

    def _warm(self) -> Runners:
        for ranker in self.catalog:
            ranker.prove()
        return {ranker.name: ranker.warm() for ranker in self.catalog}

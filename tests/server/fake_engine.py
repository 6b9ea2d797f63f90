"""A small engine in memory: scores that can be computed by hand, a log that keeps its promises, faults on demand."""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from opentelemetry import trace

from mfalcon.engine.append_batch import append_each
from mfalcon.errors import HistoryMismatch, InvalidInput
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.history.append_ids import RecentAppends
from mfalcon.history.appending import appended
from mfalcon.history.history import check_order, no_history
from mfalcon.interests import Interests, InterestsRequest, Nearest
from mfalcon.items.delta import Delta
from mfalcon.load import Load
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import (
    Append,
    Appended,
    AppendOutcome,
    CacheInfo,
    CacheSource,
    ContextFeatureInfo,
    EnsembleInfo,
    Events,
    Floats,
    HistoryPage,
    HistoryRequest,
    Ids,
    Items,
    ItemsRequest,
    ItemsUpdated,
    KeptState,
    MemberInfo,
    MemberResult,
    ModelInfo,
    RankPart,
    RankRequest,
    RankResult,
    TaskInfo,
    TellPart,
    Timings,
    UserAppend,
    no_events,
)

MODEL = ModelInfo(
    name="fake",
    version="5f0c8d2ab1e94c77",
    architecture="dfgr",
    tasks=("like", "rating"),
    actions=("rating_1", "rating_2", "rating_3", "rating_4", "rating_5"),
    context_features=(
        ContextFeatureInfo("gender", 2, ("F", "M"), derived=False),
        ContextFeatureInfo("hour", 24, (), derived=True),
    ),
    dense_features=("price", "age"),
    counters=("user_events", "item_events"),
    max_history=512,
    max_candidates=99,
    prefix_stable=True,
    backend="cpu float32",
    counts_items=True,
)
OTHER = dataclasses.replace(
    MODEL,
    name="other",
    version="0123456789ab",
    context_features=(),
    dense_features=(),
    counts_items=False,
    counters=(),
    task_infos=(TaskInfo("like", "binary", 1.0), TaskInfo("rating", "regression", 0.05)),
    ensemble=EnsembleInfo(
        "probability", 70, 1, (MemberInfo("fake", "", 0.7, "v"), MemberInfo("fake", "replica:50051", 0.1, ""))
    ),
)
MEMBERS = (
    MemberResult(
        "fake",
        "",
        0.7,
        "v",
        arrived=True,
        cache=CacheInfo(CacheSource.REDIS, 3, 4),
        timings=Timings(6, 5, 4, 3, 20),
        unknown=(0,),
        failed=(0,),
        took_us=21,
    ),
    MemberResult("fake", "replica:50051", 0.1, error="late: no answer within 70 ms", took_us=70_000),
)
"""What `OTHER`, an ensemble, tells of its members."""
KILLER = "killer"
"""A user whose rank is the last thing that the device does."""
TITLE = "<b onmouseover=alert(1)>Item {}</b> & more"
"""Of a known item: nobody may take it for markup."""
NUM_KNOWN_ITEMS = 2_000
FAILING_ITEM = 13
"""Items 1 to so many are known."""


def like_scores(candidates: Ids, num_events: int) -> Floats:
    """[num_candidates]; depends on the item and on how much of a history there is."""
    return ((candidates % 977) / 977 + num_events / 16).astype(np.float32)


class FakeEngine:
    """Satisfies `server.app.ServedEngine`; `fault` is raised by every method, `gate` holds every method up."""

    def __init__(self) -> None:
        self.histories: dict[str, Events] = {}
        self.recent = RecentAppends()
        self.requests: list[RankRequest] = []
        self.prefilled: list[tuple[tuple[str, ...], int]] = []
        self.deadlines: list[float | None] = []
        self.asked_of: list[str] = []
        self.traces: list[int] = []
        self.ready = True
        self.load = Load()
        self.closed = asyncio.Event()
        self.fault: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.num_entered = 0
        self.cancelled = asyncio.Semaphore(0)
        self.num_cancelled = 0
        self.lost_because: str | None = None
        self.part_len = 0
        self.parts_gate = asyncio.Event()
        self.parts_gate.set()
        self.late_fault: Exception | None = None

    @property
    def model(self) -> ModelInfo:
        return MODEL

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        return MODEL, OTHER

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str = "",
        tell: TellPart | None = None,
    ) -> RankResult:
        """Tells parts of `part_len` candidates but for the last; then waits for `parts_gate`; raises `late_fault`."""
        await self._pass_gate()
        if request.user_id == KILLER:
            self.lost_because = "the device thread ended: a kernel died"
        self.requests.append(request)
        self.asked_of.append(model)
        self.traces.append(trace.get_current_span().get_span_context().trace_id)
        self.deadlines.append(deadline)
        history = self._history(request.user_id)
        check_order(no_history(request.user_id, b"fake").extended(history), request.recent_events, "recent_events")
        like = like_scores(request.candidates, len(history) + len(request.recent_events))
        unknown = (request.candidates < 1) | (request.candidates > NUM_KNOWN_ITEMS)
        result = RankResult(
            scores=like,
            tasks=MODEL.tasks,
            task_scores=np.stack((like, like + 2)),
            top=np.argsort(-like, kind="stable")[: request.top_k].astype(np.uint32),
            model_version=(OTHER if model == OTHER.name else MODEL).version,
            cache=CacheInfo(CacheSource.HOST, len(history), len(request.recent_events)),
            timings=Timings(1, 2, 3, 4, 10, 5, 6, 8),
            history_len=len(history),
            history_version=no_history(request.user_id).extended(history).version,
            unknown=np.flatnonzero(unknown).astype(np.uint32),
            failed=np.flatnonzero(request.candidates == FAILING_ITEM).astype(np.uint32),
            rerank_skipped="late" if request.rerank is not None else "",
            members=MEMBERS if model == OTHER.name else (),
            partial_merge=model == OTHER.name,
            counters_version=2**40 + len(history),
            counters_stale=request.allow_partial,
        )
        if tell is not None and self.part_len:
            for first in range(0, len(like) - self.part_len, self.part_len):
                tell(self.part_of(result, first, first + self.part_len))
            try:
                await self.parts_gate.wait()
            except asyncio.CancelledError:
                self.cancelled.release()
                raise
            if self.late_fault is not None:
                raise self.late_fault
        return result

    def part_of(self, result: RankResult, first: int, stop: int) -> RankPart:
        """What is told of the candidates [first, stop)."""
        unknown, failed = (which[(which >= first) & (which < stop)] for which in (result.unknown, result.failed))
        scores, by_task = result.scores[first:stop], result.task_scores[:, first:stop]
        return RankPart(first, scores, by_task, unknown, failed, result.tasks, result.model_version)

    async def update_items(self, model: str, delta: Delta) -> ItemsUpdated:
        raise InvalidInput("item_id", delta.item_id[0], "that of an item")

    async def refresh_graph(self, model: str, refresh: GraphRefresh) -> None:
        raise InvalidInput("model", model, "one that was trained with --graph")

    async def reload(self, model: str, load: Callable[[], Checkpoint]) -> ModelInfo:
        load()
        return MODEL

    async def start(self) -> None:
        pass

    async def reach_redis(self) -> None:
        pass

    def lost(self, stall_s: float) -> str | None:
        return self.lost_because

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        await self._pass_gate()
        if (again := self.recent.find(user_id, append)) is not None:
            return again
        after, told = appended(no_history(user_id, b"fake").extended(self._history(user_id)), append)
        self.histories[user_id] = after.events
        self.recent.add(user_id, append, told)
        return told

    async def append_batch(self, appends: Sequence[UserAppend], deadline: float | None) -> list[AppendOutcome]:
        """Each by itself."""
        return await append_each(self.append_events, appends, deadline)

    async def get_history(self, request: HistoryRequest, deadline: float | None) -> HistoryPage:
        await self._pass_gate()
        history = no_history(request.user_id).extended(self._history(request.user_id))
        if request.expected_version not in (None, history.version):
            raise HistoryMismatch.while_reading(request.expected_version, len(history), history.version)
        first = min(request.first, len(history))
        events = history.events[first : first + request.limit]
        states = (KeptState("fake", CacheSource.HOST, 0, len(history), 2 * len(history), 2**33, fits=True),)
        return HistoryPage(
            len(history),
            history.version,
            0,
            first,
            events,
            history.link(first + len(events)),
            stale=False,
            states=states if request.with_states else (),
        )

    async def items(self, request: ItemsRequest) -> Items:
        await self._pass_gate()
        self.asked_of.append(request.model)
        sampled = (request.seed + np.arange(request.num_sampled)) % NUM_KNOWN_ITEMS + 1
        item_ids = np.concatenate([request.item_ids, sampled])
        titles = tuple(TITLE.format(item) if 1 <= item <= NUM_KNOWN_ITEMS else "" for item in item_ids.tolist())
        return Items(item_ids, titles, NUM_KNOWN_ITEMS)

    async def interests(self, request: InterestsRequest, deadline: float | None, model: str = "") -> Interests:
        await self._pass_gate()
        self.asked_of.append(model)
        self.deadlines.append(deadline)
        history = no_history(request.user_id).extended(self._history(request.user_id))
        num, top = len(request.conditions), request.top_items
        nearest = tuple(
            Nearest(np.arange(1, 1 + top, dtype=np.int64), -np.arange(top, dtype=np.float32))
            for _ in request.conditions
            if top
        )
        return Interests(
            conditions=request.conditions,
            vectors=np.arange(4 * num, dtype=np.float32).reshape(num, 4) + len(request.recent_events),
            nearest=nearest,
            model_version="lum-1",
            cache=CacheInfo(CacheSource.HOST, len(history), 0),
            timings=Timings(1, 2, 3, 4, 10),
            history_len=len(history),
            history_version=history.version,
            stale=request.request_time_ms == 1_000_000_000_001,
            computed_ahead=top == 0,
        )

    async def prefill(
        self,
        user_id: str,
        deadline: float | None,
        model: str = "",
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        if conditions:
            self.prefilled.append((tuple(conditions), request_time_ms))
        await self._pass_gate()
        self.asked_of.append(model)
        return CacheInfo(CacheSource.NONE, 0, len(self._history(user_id)))

    async def delete_user(self, user_id: str, deadline: float | None) -> None:
        await self._pass_gate()
        self.histories.pop(user_id, None)
        self.recent.delete(user_id)

    async def hand_over(self, seconds: float, most_bytes: int) -> None:
        pass

    async def close(self) -> None:
        self.closed.set()

    def _history(self, user_id: str) -> Events:
        return self.histories.get(user_id, no_events())

    async def _pass_gate(self) -> None:
        self.entered.set()
        self.num_entered += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            self.cancelled.release()
            raise
        if self.fault is not None:
            raise self.fault

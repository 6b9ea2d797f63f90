"""Interests of a user: conditions are the candidates of a job, and the items nearest to what comes of it are found in a
thread beside, while the device computes on.

What a prefill has computed ahead is used for exactly its history (`kept_interests.py`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from mfalcon.engine.catalog import Catalog
from mfalcon.engine.jobs import Jobs
from mfalcon.engine.kept_interests import KeptInterests
from mfalcon.engine.nearest import as_floats
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.errors import EngineFailure, InvalidInput, NotReady
from mfalcon.history.history import Reading
from mfalcon.history.tombstones import Tombstones
from mfalcon.interests import Interests, InterestsRequest, Nearest, interleaved
from mfalcon.spans import within
from mfalcon.types import (
    CacheInfo,
    CacheSource,
    RankRequest,
    RankResult,
    Timings,
    no_events,
)

T = TypeVar("T")

_TRIES = 3


class InterestStage:
    """Lives on one event loop, with one thread for all models."""

    def __init__(self, catalog: Catalog, jobs: Jobs, tombstones: Tombstones) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._tombstones = tombstones
        self._kept = KeptInterests()
        # It has one core: the device has work for all.
        self._thread = ThreadPoolExecutor(1, "mfalcon-nearest", torch.set_num_threads, (1,))
        # A thread that is started when there is no memory left may never come up, and whoever starts it waits for it.
        self._thread.submit(int).result()

    async def answer(self, request: InterestsRequest, deadline: float | None, model: str) -> Interests:
        """See `Engine.interests`."""
        began, ranker = time.monotonic(), self._found(model)
        self._check(ranker, request.conditions)
        if request.top_items:
            (await self._beside(lambda: ranker.nearest)).check()
        reading = await ranker.fetcher.read(request.user_id, deadline)
        found = self._computed_ahead(ranker, request, reading, began)
        if found is None:
            ranker, found = await self._computed(ranker, request, reading, deadline)
        if request.top_items:
            with within("nearest"):
                found = replace(found, nearest=await self._nearest(ranker, found, request.top_items))
        timings = replace(found.timings, total_us=_us(time.monotonic() - began))
        return replace(found, timings=timings)

    async def prepare(
        self, user_id: str, conditions: tuple[str, ...], time_ms: int, deadline: float | None, model: str
    ) -> CacheInfo:
        """Encode the history, and compute interests and keep them for a request to come. They are of this time."""
        ranker = self._found(model)
        self._check(ranker, conditions)
        reading = await ranker.fetcher.read(user_id, deadline)
        asked = InterestsRequest(user_id, conditions, 0, time_ms, no_events())
        ranker, found = await self._computed(ranker, asked, reading, deadline)
        if not reading.stale and reading.history.generation not in self._tombstones:
            self._kept.put(_key(ranker), reading.history, time_ms, conditions, found.vectors)
        return found.cache

    async def rank_retrieved(
        self, request: RankRequest, deadline: float | None, rank: Callable[[RankRequest], Awaitable[RankResult]]
    ) -> RankResult:
        """Rank what a large user model proposes. rank: a request with candidates."""
        began, wish = time.monotonic(), request.retrieve
        assert wish is not None
        asked = InterestsRequest(
            request.user_id, wish.conditions, wish.num_items, request.request_time_ms, request.recent_events
        )
        with within("retrieve"):
            found = await self.answer(asked, deadline, wish.model)
        candidates = interleaved(found.nearest, wish.num_items)
        texts = self._found(wish.model).checkpoint.items.texts_of(candidates)
        if not len(candidates):
            raise InvalidInput("retrieve.conditions", ", ".join(wish.conditions)[:80], "conditions that have items")
        result = await rank(replace(request, candidates=candidates, retrieve=None))
        timings = replace(result.timings, total_us=_us(time.monotonic() - began))
        num = result.num_scored
        return replace(result, candidates=candidates[:num], candidate_texts=texts[:num], timings=timings)

    def delete(self, user: bytes | None) -> None:
        """Forget what was computed ahead of a user, by hash, or of everybody."""
        self._kept.delete(user)

    async def close(self) -> None:
        """Wait for what was begun."""
        await asyncio.to_thread(self._thread.shutdown)

    def _found(self, model: str) -> LoadedRanker:
        """The model of a name, for "" the first that has conditions, if there is one."""
        if not model:
            asked = (ranker for ranker in self._catalog if ranker.conditions)
            return next(asked, self._catalog.default)
        return self._catalog.get(model)

    @staticmethod
    def _check(ranker: LoadedRanker, conditions: tuple[str, ...]) -> None:
        if not ranker.conditions:
            raise InvalidInput("model", ranker.name, "a model that has conditions: this one ranks items")
        unknown = [name for name in conditions if name not in ranker.conditions]
        if unknown:
            raise InvalidInput("conditions", unknown[0], "conditions of the model (GetModelResponse.conditions)")

    def _computed_ahead(
        self, ranker: LoadedRanker, request: InterestsRequest, reading: Reading, began: float
    ) -> Interests | None:
        if len(request.recent_events):
            return None
        history, names = reading.history, request.conditions
        vectors = self._kept.get(_key(ranker), history, request.request_time_ms, names)
        if vectors is None:
            return None
        return Interests(
            conditions=names,
            vectors=vectors,
            nearest=(),
            model_version=ranker.info.version,
            cache=CacheInfo(CacheSource.HOST, len(history) - ranker.window_start(history), 0),
            timings=Timings(0, _us(time.monotonic() - began), 0, 0, 0),
            history_len=len(history),
            history_version=history.version,
            stale=reading.stale,
            computed_ahead=True,
        )

    async def _computed(
        self, ranker: LoadedRanker, request: InterestsRequest, reading: Reading, deadline: float | None
    ) -> tuple[LoadedRanker, Interests]:
        """Who computed them, and the interests: a reload may exchange the model, and its conditions, meanwhile."""
        for _ in range(_TRIES):
            self._check(ranker, request.conditions)
            rows = np.array([ranker.conditions[name][0] for name in request.conditions], dtype=np.int64)
            asked = RankRequest(request.user_id, rows, 0, request.request_time_ms, request.recent_events, {})
            result = await self._jobs.rank(ranker, asked, deadline, reading=reading)
            if result.model_version == ranker.info.version:
                return ranker, self._told(request, result)
            ranker = self._catalog.get(ranker.name)
        raise NotReady(f"model {ranker.name} is being exchanged; ask again")

    @staticmethod
    def _told(request: InterestsRequest, result: RankResult) -> Interests:
        if len(result.failed):
            names = ", ".join(request.conditions[at] for at in result.failed[:5])
            raise EngineFailure(f"the model gives {len(result.failed)} conditions no finite interest: {names}")
        return Interests(
            conditions=request.conditions,
            vectors=as_floats(result.task_scores),
            nearest=(),
            model_version=result.model_version,
            cache=result.cache,
            timings=result.timings,
            history_len=result.history_len,
            history_version=result.history_version,
            stale=result.stale,
        )

    async def _nearest(self, ranker: LoadedRanker, found: Interests, num: int) -> tuple[Nearest, ...]:
        categories = [ranker.conditions[name][1].category for name in found.conditions]
        return await self._beside(lambda: ranker.nearest.nearest(found.vectors, categories, num))

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _key(ranker: LoadedRanker) -> str:
    """Names what computed an interest."""
    return f"{ranker.name}:{ranker.checkpoint.fingerprint}"


def _us(seconds: float) -> int:
    return round(seconds * 1e6)

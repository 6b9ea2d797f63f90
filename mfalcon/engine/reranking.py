"""The stage behind the scores: a thread beside reorders the top of an answer, and the device computes on meanwhile.

No answer is late or an error because of it: where its time is up or it fails, the top stays in the order of the scores
and the answer says so.
"""

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from opentelemetry import trace

from mfalcon.engine.ranker import LoadedRanker
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.rerank.likeness import SimilarTo
from mfalcon.rerank.order import reranked
from mfalcon.rerank.tail import num_events
from mfalcon.types import Floats, Ids, Positions, RankRequest, RankResult, Rerank

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("mfalcon")

LATE, FAILED = "late", "failed"
"""Why a top is in the order of the scores after all."""


class Reranking:
    """Lives on one event loop, with one thread for all models."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        # It has one core: the device has work for all.
        self._thread = ThreadPoolExecutor(1, "mfalcon-rerank", torch.set_num_threads, (1,))
        # A thread that is started when there is no memory left may never come up, and whoever starts it waits for it.
        self._thread.submit(int).result()

    async def rerank(
        self,
        ranker: LoadedRanker,
        wish: Rerank,
        request: RankRequest,
        result: RankResult,
        due: float,
        name: str = "",
    ) -> RankResult:
        """The result with its top reordered as is wished. due: time.monotonic() seconds, infinity for any time. name:
        what was asked, where it is an ensemble and the ranker a member.
        """
        began, name = time.monotonic(), name or ranker.name
        with _tracer.start_as_current_span("rerank") as span:
            top, skipped = await self._top(ranker, wish, request, result, due)
            span.set_attributes({"mfalcon.method": wish.method, "mfalcon.outcome": skipped or "done"})
        seconds = time.monotonic() - began
        self._metrics.stages.took(name, "rerank", seconds)
        self._metrics.reranks.count(name, wish.method, skipped or "done")
        took_us, timings = round(seconds * 1e6), result.timings
        timings = replace(timings, rerank_us=took_us, total_us=timings.total_us + took_us)
        return replace(result, top=top, timings=timings, rerank_skipped=skipped)

    async def close(self) -> None:
        """Wait for what was begun."""
        await asyncio.to_thread(self._thread.shutdown)

    async def _top(
        self, ranker: LoadedRanker, wish: Rerank, request: RankRequest, result: RankResult, due: float
    ) -> tuple[Positions, str]:
        """The top, and why it is not reordered if it is not."""
        left = due - time.monotonic()
        if left <= 0:
            return result.top, LATE
        try:
            async with asyncio.timeout(left if left < math.inf else None):
                work = asyncio.get_running_loop().run_in_executor(
                    self._thread, _reordered, ranker, wish, request, result, due
                )
                return await work, ""
        except TimeoutError:
            return result.top, LATE
        except Exception:  # noqa: BLE001 (the edge of a stage that nothing may fail by)
            _log.exception("reranking by %s failed; the answer is in the order of the scores", wish.method)
            return result.top, FAILED


def _reordered(ranker: LoadedRanker, wish: Rerank, request: RankRequest, result: RankResult, due: float) -> Positions:
    """On the thread. Raises TimeoutError when the time is up."""

    def among(positions: Positions) -> SimilarTo:
        similar_to = ranker.likeness.among(ranker.checkpoint.items.rows(request.candidates[positions]))

        def in_time(position: int) -> Floats:
            if time.monotonic() >= due:
                raise TimeoutError
            return similar_to(position)

        return in_time

    def counts(positions: Positions) -> Ids:
        return num_events(ranker.checkpoint.items, ranker.checkpoint.items.rows(request.candidates[positions]))

    task = ranker.probability
    probabilities = None if task is None else result.task_scores[result.tasks.index(task)]
    return reranked(result.scores, probabilities, request.top_k, wish, among, counts)

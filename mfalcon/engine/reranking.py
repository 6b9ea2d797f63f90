"""The stage behind the scores: a thread beside, or a language model, reorders the top of an answer, and the device
computes on meanwhile.

No answer is late or an error because of it: where its time is up or it fails, the top stays in the order of the scores
and the answer says so.
"""

import asyncio
import logging
import math
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from mfalcon.best_first import best_first
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.rerank.language_model import LanguageModel, LanguageModelOptions, Skipped
from mfalcon.rerank.likeness import SimilarTo
from mfalcon.rerank.order import reranked
from mfalcon.rerank.prompt import Catalogue, Item
from mfalcon.rerank.tail import num_events
from mfalcon.spans import exemplar, within
from mfalcon.types import NO_SCORE, Floats, Ids, Positions, RankRequest, RankResult, Rerank, RerankSkipped

_log = logging.getLogger(__name__)

LLM = "llm"
LLM_DEPTH = 20
"""Candidates that a language model is sent where the request does not say."""

Outcome = RerankSkipped | Literal[""]

_MOST_RESERVED = 0.25
"""Of a request's time, what ranking leaves for reranking."""
_FIRST_GUESS_S = 0.005
_FORGETS = 0.9
"""Of the longest time that was seen, what is kept after a shorter one."""


class Reranking:
    """Lives on one event loop, with one thread for all models."""

    def __init__(self, metrics: ServerMetrics, llm: LanguageModelOptions | None = None) -> None:
        """Raises ConfigError for a language model that cannot be asked from here."""
        self._metrics = metrics
        self._llm = None if llm is None else LanguageModel(llm)
        self._usual_s: defaultdict[str, float] = defaultdict(lambda: _FIRST_GUESS_S)
        # It has one core: the device has work for all.
        self._thread = ThreadPoolExecutor(1, "mfalcon-rerank", torch.set_num_threads, (1,))
        # A thread that is started when there is no memory left may never come up, and whoever starts it waits for it.
        self._thread.submit(int).result()

    def reserve(self, wish: Rerank, seconds: float) -> float:
        """How many of a request's seconds ranking should leave to this stage: what it took lately, or all that a
        language model may take, and no more than a quarter.
        """
        if wish.method != LLM:
            needed = self._usual_s[wish.method]
        else:
            needed = 0.0 if self._llm is None else self._llm.options.timeout_s
        return min(needed, max(0.0, _MOST_RESERVED * seconds)) if seconds < math.inf else needed

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
        with within("rerank") as span:
            top, skipped = await self._top(ranker, wish, request, result, due)
            span.set_attributes({"mfalcon.method": wish.method, "mfalcon.outcome": skipped or "done"})
        seconds = time.monotonic() - began
        if not skipped:
            self._usual_s[wish.method] = max(seconds, _FORGETS * self._usual_s[wish.method])
        self._metrics.stages.took(name, "rerank", seconds, exemplar())
        self._metrics.reranks.count(name, wish.method, skipped or "done")
        took_us, timings = round(seconds * 1e6), result.timings
        timings = replace(timings, rerank_us=took_us, total_us=timings.total_us + took_us)
        return replace(result, top=top, timings=timings, rerank_skipped=skipped)

    async def close(self) -> None:
        """Wait for what was begun, but for what a language model was asked."""
        if self._llm is not None:
            await self._llm.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def _top(
        self, ranker: LoadedRanker, wish: Rerank, request: RankRequest, result: RankResult, due: float
    ) -> tuple[Positions, Outcome]:
        """The top, and why it is not reordered if it is not."""
        left = due - time.monotonic()
        if left <= 0:
            return result.top, "late"
        try:
            async with asyncio.timeout(left if left < math.inf else None):
                if wish.method == LLM:
                    return await self._asked(ranker, wish, request, result, left), ""
                work = partial(_reordered, ranker, wish, request, result, due)
                return await asyncio.get_running_loop().run_in_executor(self._thread, work), ""
        except TimeoutError:
            return result.top, "late"
        except Skipped as skipped:
            return result.top, skipped.reason
        except Exception:  # noqa: BLE001 (the edge of a stage that nothing may fail by)
            _log.exception("reranking by %s failed; the answer is in the order of the scores", wish.method)
            return result.top, "failed"

    async def _asked(
        self, ranker: LoadedRanker, wish: Rerank, request: RankRequest, result: RankResult, left: float
    ) -> Positions:
        """By a language model: the best `depth` in its order, and behind these the others by score. Raises Skipped."""
        if self._llm is None:
            raise Skipped("off")
        depth = min(wish.depth or LLM_DEPTH, int(np.count_nonzero(result.scores != NO_SCORE)))
        order = best_first(result.scores, max(request.top_k, depth))
        if depth < 2:
            return order[: request.top_k]
        began, config = time.monotonic(), ranker.checkpoint.model.config
        reading = await ranker.fetcher.read(request.user_id, None if left == math.inf else began + left)
        best = request.candidates[order[:depth]]

        def describe() -> tuple[list[Item], list[Item]]:
            events = np.concatenate([reading.history.events, request.recent_events])
            items = ranker.described(np.concatenate([events["item_id"], best])).items
            catalogue = Catalogue(items, config.side_features, config.actions)
            return catalogue.history(events), catalogue.candidates(items.rows(best))

        history, candidates = await asyncio.get_running_loop().run_in_executor(self._thread, describe)
        positions = await self._llm.order(history, candidates, left - (time.monotonic() - began))
        return np.concatenate([order[:depth][positions], order[depth:]])[: request.top_k]


def _reordered(ranker: LoadedRanker, wish: Rerank, request: RankRequest, result: RankResult, due: float) -> Positions:
    """On the thread. Raises TimeoutError when the time is up."""
    described = ranker.described(request.candidates)
    items, likeness = described.items, described.likeness.by(wish.method)

    def among(positions: Positions) -> SimilarTo:
        similar_to = likeness.among(items.rows(request.candidates[positions]))

        def in_time(position: int) -> Floats:
            if time.monotonic() >= due:
                raise TimeoutError
            return similar_to(position)

        return in_time

    def counts(positions: Positions) -> Ids:
        return num_events(items, items.rows(request.candidates[positions]))

    task = ranker.probability
    probabilities = None if task is None else result.task_scores[result.tasks.index(task)]
    return reranked(result.scores, probabilities, request.top_k, wish, among, counts)

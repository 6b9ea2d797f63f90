"""The stages of an answer, in order: rank, merge, rerank. Each has its share of the deadline, its span, its metric and
its fallback.

| stage | share of the time | span | `mfalcon_stage_seconds` | where it does not succeed |
|---|---|---|---|---|
| rank | up to the deadline; asked to be done by what rerank needs before it | `rank` | log to score | an error |
| merge | `merge_budget_ms` of the ensemble, its members' ranks included | `merge` | merge | what has arrived |
| rerank | what rank leaves; it is measured what that has to be | `rerank` | rerank | the order of the scores |
"""

import time

from mfalcon.capture.seen import Seen
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.eligible import among, eligible, with_top
from mfalcon.engine.ensemble import Ensemble
from mfalcon.engine.ensembles import Ensembles
from mfalcon.engine.job import reply_by
from mfalcon.engine.jobs import Jobs
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.engine.reranking import Reranking
from mfalcon.errors import InvalidInput
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.spans import within
from mfalcon.types import RankRequest, RankResult, TellPart, no_events


class Pipeline:
    """Lives on the event loop."""

    def __init__(
        self, catalog: Catalog, ensembles: Ensembles, jobs: Jobs, reranking: Reranking, metrics: ServerMetrics
    ) -> None:
        self._catalog = catalog
        self._ensembles = ensembles
        self._jobs = jobs
        self._reranking = reranking
        self._metrics = metrics

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str,
        seen: Seen | None = None,
        tell: TellPart | None = None,
    ) -> RankResult:
        """See `Engine.rank`. An ensemble has no scores before it has merged."""
        accepted, ensemble = time.monotonic(), self._ensembles.get(model)
        ranker = self._likeness(ensemble, request) if ensemble is not None else self._catalog.get(model)
        reading = None
        if request.exclude_seen and ranker is not None:
            reading = await ranker.fetcher.read(request.user_id, deadline)
        wish = request.rerank if request.top_k else None
        with within("rank") as span:
            if ensemble is not None:
                result = await ensemble.rank(request, deadline, seen)
                span.set_attributes({"mfalcon.model": ensemble.name, "mfalcon.partial_merge": result.partial_merge})
            else:
                assert ranker is not None
                due = reply_by(deadline, accepted)
                reserve_s = 0.0 if wish is None else self._reranking.reserve(wish, due - accepted)
                result = await self._jobs.rank(
                    ranker, request, deadline, reading=reading, reserve_s=reserve_s, seen=seen, tell=tell
                )
            positions, whole, asked = None, result, request
            if request.top_k and (request.exclude_unknown or request.exclude_seen):
                history = no_events() if reading is None else reading.history.events
                positions = eligible(request, result, history)
                asked, result = among(positions, request, result)
            if wish is not None and ranker is not None:
                name = ranker.name if ensemble is None else ensemble.name
                with self._metrics.device.answering(name, deadline):
                    due = reply_by(deadline, accepted)
                    result = await self._reranking.rerank(ranker, wish, asked, result, due, name)
        return result if positions is None else with_top(whole, positions, result)

    def _likeness(self, ensemble: Ensemble, request: RankRequest) -> LoadedRanker | None:
        """Whose items tell how alike the candidates of an ensemble are: its first member here."""
        if ensemble.locals:
            return self._catalog.get(ensemble.locals[0])
        if request.rerank is not None:
            raise InvalidInput("rerank", request.rerank.method, "absent: no member of this ensemble is a model here")
        if request.exclude_seen:
            raise InvalidInput("exclude_seen", True, "false: no member of this ensemble is a model here")
        return None

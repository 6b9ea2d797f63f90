"""The server that is asked: a real engine on a tiny model, which shows what it was asked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import Histories, HistoryOptions
from mfalcon.engine.ranker import LoadedRanker, RankerOptions
from mfalcon.history.local_log import LocalLog
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.types import Append, RankRequest, RankResult, TellPart
from tests.server.bad_input.making import USER, stored_history
from tests.server.harness import Served, serving_engine
from tests.small import small_checkpoint, small_config


class WatchedEngine(Engine):
    """A real engine on a tiny model that shows how many users it has and how often a request came to be ranked."""

    def __init__(self) -> None:
        metrics, checkpoint = ServerMetrics(), small_checkpoint(config=small_config(with_counters=True))
        device = Device(torch.device("cpu"), 1, 1_024, metrics.device)
        histories = Histories(HistoryOptions(), metrics.states)
        ranker = LoadedRanker(checkpoint, RankerOptions(microbatch=16), device, histories, metrics.states)
        super().__init__(histories, device, Catalog([ranker]), metrics)
        self.num_ranks = 0

    @property
    def num_users(self) -> int:
        assert isinstance(self.histories.log, LocalLog)
        return len(self.histories.log)

    async def rank(
        self, request: RankRequest, deadline: float | None, model: str = "", tell: TellPart | None = None
    ) -> RankResult:
        self.num_ranks += 1
        return await super().rank(request, deadline, model, tell)


@asynccontextmanager
async def serving_the_table() -> AsyncIterator[Served[WatchedEngine]]:
    """A server with the history of the table."""
    engine = WatchedEngine()
    engine.wait_ready()
    await engine.append_events(USER, Append(stored_history(), 0))
    async with serving_engine(engine) as running:
        yield running

"""Refreshes of graph vectors of models that are served: checked beside the requests, swapped in between two steps."""

import asyncio
import time
from dataclasses import replace

from mfalcon.beside import beside
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.device import Device
from mfalcon.engine.ranker import LoadedRanker
from mfalcon.errors import CheckpointError, InvalidInput
from mfalcon.graph.vectors import GraphRefresh, GraphVectors
from mfalcon.metrics.graph import GraphMetrics


class GraphRefreshes:
    """Lives on the event loop. One refresh of a model at a time."""

    def __init__(self, catalog: Catalog, device: Device, metrics: GraphMetrics) -> None:
        self._catalog = catalog
        self._device = device
        self._metrics = metrics

    async def refresh(self, model: str, refresh: GraphRefresh) -> None:
        """Serve a model with these vectors from the next step on; see `LiveGraph.made` for what it raises, and
        UnknownModel, ShuttingDown.
        """
        name, began = self._catalog.get(model).name, time.monotonic()
        try:
            async with self._catalog.held(name) as ranker:
                vectors = await beside(lambda: ranker.graph.made(refresh), in_background=True)
                await swap_graph(self._device, ranker, vectors)
        except (CheckpointError, InvalidInput) as error:
            self._metrics.refused(name, error)
            raise
        self._metrics.applied(name, refresh.number, time.monotonic() - began)


async def swap_graph(device: Device, ranker: LoadedRanker, vectors: GraphVectors) -> None:
    """Have a ranker's requests begin with these from the next step on. The holder of its items' lock alone."""
    await asyncio.wrap_future(device.call(lambda: setattr(ranker.graph, "current", vectors)))
    ranker.info = replace(ranker.info, graph_version=vectors.name)

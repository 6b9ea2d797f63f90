"""The graph vectors of a model that is served: exchanged as one reference, between two steps of the device."""

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.graph.vectors import GraphRefresh, GraphVectors
from mfalcon.models.items import ItemTable
from mfalcon.types import Floats


class LiveGraph:
    """Of one model. `current` is read by any thread and assigned by the device's alone: a request reads it once, when
    it begins, and keeps that to its end.
    """

    def __init__(self, own: Floats | None, items: ItemTable, fingerprint: str = "", name: str = "") -> None:
        """own: the checkpoint's vectors, float32 [num_rows, dim], None of a model that reads none. name: its name."""
        self._has_graph, self._name = own is not None, name
        self._items, self._fingerprint = items, fingerprint
        self.current = GraphVectors() if own is None else GraphVectors(rows=own)

    @property
    def rows(self) -> Floats | None:
        """The vectors by item row, None of a model that reads none."""
        return self.current.rows if self._has_graph else None

    def made(self, refresh: GraphRefresh) -> GraphVectors:
        """What a refresh makes of the current ones, which are not changed by it. Any thread.

        Raises CheckpointError for vectors of another checkpoint, and for older ones; InvalidInput for what are none.
        """
        if not self._has_graph:
            raise InvalidInput("model", self._name, "one that was trained with --graph")
        now = self.current
        refresh.check(now.rows.shape[1], self._fingerprint)
        return now.refreshed(refresh, self._items.rows(np.ascontiguousarray(refresh.item_id)))

    def adopted(self, other: "LiveGraph") -> GraphVectors:
        """Those of another ranker, for this one of the same checkpoint."""
        is_same = self._fingerprint == other._fingerprint and self._has_graph
        return other.current if is_same else self.current

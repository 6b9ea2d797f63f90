"""Where the numbers behind the layers come from while a model serves: the caller, the streaming counters, and the graph
of items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mfalcon.features.counters import LikeRule, count_for_request
from mfalcon.features.graph import graph_features
from mfalcon.features.standard import standardised
from mfalcon.features.tags import ItemTags
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import CountersConfig, DenseFeature, GraphConfig
from mfalcon.models.items import KnownItems
from mfalcon.types import Events, Floats, Ids, RankRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a source of features sees it.

    rows: item rows of the candidates, [n]. history: the acknowledged events that are kept, before the request's own.
    item_counts: int64 [n, 3] by meaning of a like, see `ItemCounters.read`. graph: float32 [num_rows, dim], the vectors
    of items of a model that reads them.
    """

    request: RankRequest
    rows: Ids
    history: Events
    item_counts: Mapping[LikeRule, Ids]
    graph: Floats | None = None

    def newest(self, most: int) -> Events:
        """The newest events that the user is known by, his own of the request among them."""
        recent = self.request.recent_events
        kept = self.history[max(0, len(self.history) + len(recent) - most) :]
        return np.concatenate([kept, recent])[-most:]


class FeatureSource(Protocol):
    """Gives some of the numbers that a model reads of each candidate."""

    def features(self, asked: Asked) -> Floats:
        """Standardised: float32 [n, num_features]."""
        ...


class GivenFeatures:
    """Those of the caller; one that is not given is its mean."""

    def __init__(self, features: tuple[DenseFeature, ...]) -> None:
        self._features = features

    def features(self, asked: Asked) -> Floats:
        """See `FeatureSource.features`."""
        return standardised(self._features, asked.request.dense, len(asked.rows))


class StreamingCounters:
    """Those that the server counts. Of an item whose counters were not read all three are their means."""

    def __init__(self, config: CountersConfig, like: LikeRule, items: KnownItems) -> None:
        self._config = config
        self._like = like
        self._items = items
        self._tags = ItemTags(items, config.tags)

    def features(self, asked: Asked) -> Floats:
        """See `FeatureSource.features`."""
        history = asked.newest(self._config.max_events)
        rows = self._items.rows(np.ascontiguousarray(history["item_id"]))
        of_items = asked.item_counts.get(self._like)
        counts = np.zeros((len(asked.rows), 3), dtype=np.int64) if of_items is None else of_items
        time_ms = asked.request.request_time_ms
        out = count_for_request(history, rows, self._like, self._tags, asked.rows, time_ms, counts).features(
            self._config
        )
        if of_items is None:
            out[:, -3:] = 0
        return out


class GraphSource:
    """The graph's, by the vectors that are served."""

    def __init__(self, config: GraphConfig, like: LikeRule, items: KnownItems) -> None:
        self._config, self._like, self._items = config, like, items

    def features(self, asked: Asked) -> Floats:
        """See `FeatureSource.features`."""
        assert asked.graph is not None
        events = asked.newest(self._config.max_events)
        rows = self._items.rows(np.ascontiguousarray(events["item_id"]))
        return graph_features(asked.graph, rows, self._like(events), asked.rows)


class FeatureProvider:
    """All that a model reads of each candidate behind the layers, in its order."""

    def __init__(self, config: RankerConfig, items: KnownItems) -> None:
        self.like = LikeRule.of(config) if config.counters is not None else None
        self._sources: list[FeatureSource] = []
        if config.dense_features:
            self._sources.append(GivenFeatures(config.dense_features))
        if config.counters is not None and self.like is not None:
            self._sources.append(StreamingCounters(config.counters, self.like, items))
        if config.graph is not None:
            like = LikeRule.of_task(config.graph_task, config.actions)
            self._sources.append(GraphSource(config.graph, like, items))

    def features(self, asked: Asked) -> Floats | None:
        """Standardised: float32 [n, num_inputs], None of a model that reads none."""
        if not self._sources:
            return None
        return np.concatenate([source.features(asked) for source in self._sources], axis=1)

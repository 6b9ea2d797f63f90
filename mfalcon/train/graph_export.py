"""Newer vectors of a checkpoint's items, by the network that it was trained with and a graph of newer events."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import ConfigError
from mfalcon.graph.vectors import GraphRefresh
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.graph import graph_of, network_of
from mfalcon.train.graph_sampling import GraphTensors, export
from mfalcon.train.recipes import GraphTraining


def refresh_of(
    checkpoint: Checkpoint, dataset: Dataset, chosen: NDArray[np.bool_], number: int, training: GraphTraining
) -> GraphRefresh:
    """By the likes among the chosen events, bool [num_events]. Raises ConfigError for a checkpoint whose network did
    not learn with its ranker, or that has none, and DataError for a data set of other actions.
    """
    model = checkpoint.model
    network = network_of(model)
    if model.config.graph is None or not model.config.graph.joint:
        raise ConfigError(f"{model.config.name}: its graph was learnt before it, alone: no newer vectors fit it")
    dataset = dataset.with_actions(model.config.actions)
    graph = graph_of(dataset, checkpoint.items, model.config, chosen, training)
    vectors = export(network, model.items, GraphTensors.of(graph)).numpy()
    return GraphRefresh(number, checkpoint.fingerprint, checkpoint.items.item_id, np.ascontiguousarray(vectors[1:]))

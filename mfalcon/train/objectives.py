"""Which objective a model is trained by."""

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.base import Ranker
from mfalcon.models.lum import LUM
from mfalcon.train.dataset import Dataset
from mfalcon.train.graph import GraphObjective
from mfalcon.train.graph_two_stage import TwoStageObjective
from mfalcon.train.interests import InterestObjective
from mfalcon.train.objective import Objective, TaskObjective
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.sequences import Columns


def objective_of(
    model: Ranker, dataset: Dataset, columns: Columns, config: TrainConfig, is_training: NDArray[np.bool_] | None = None
) -> Objective[Ranker]:
    """Of a model that is trained on some events of a data set, bool [num_events]. Without them the network of a graph
    does not learn: its vectors are what they are.
    """
    if isinstance(model, LUM):
        interests: Objective[LUM] = InterestObjective(dataset, columns, config)
        return interests  # type: ignore[return-value]  # it is asked about models of this kind alone
    if (graph := model.config.graph) is not None and is_training is not None:
        kind = GraphObjective if graph.joint else TwoStageObjective
        return kind(model, dataset, columns, config, is_training)
    return TaskObjective(dataset, columns, config)

"""What a model reads of a number in any unit: its distance from the mean in standard deviations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mfalcon.models.config_features import DenseFeature
from mfalcon.types import DenseFeatures, Floats

LARGEST = 1e4
"""Most standard deviations that a feature may be away from its mean: beyond it is as if it were just there. The squares
of what a layer makes of it are finite in float32.
"""


def standard(feature: DenseFeature, column: NDArray[np.floating]) -> Floats:
    """What a model reads of one feature [n]: float32, 0 where it is NaN."""
    out = ((column.astype(np.float64) - feature.center) / feature.scale).clip(-LARGEST, LARGEST)
    out[np.isnan(out)] = 0
    return out.astype(np.float32)


def standardised(features: Sequence[DenseFeature], given: DenseFeatures, num_candidates: int) -> Floats:
    """What a model reads of the features that a request gives: float32 [num_candidates, num_features], in the order of
    the model. One that is not given is its mean.
    """
    out = np.zeros((num_candidates, len(features)), dtype=np.float32)
    columns = dict(zip(given.names, given.values.reshape(num_candidates, len(given.names)).T, strict=True))
    for index, feature in enumerate(features):
        if feature.name in columns:
            out[:, index] = standard(feature, columns[feature.name])
    return out

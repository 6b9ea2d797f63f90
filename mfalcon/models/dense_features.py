"""Dense features of a candidate: numbers that meet it behind the layers, so that no KV state depends on them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.config import DenseFeature
from mfalcon.types import DenseFeatures, Floats

LARGEST = 1e4
"""Most standard deviations that a feature may be away from its mean: beyond it is as if it were just there. The squares
of what a layer makes of it are finite in float32.
"""


class DenseEmbedding(nn.Module):
    """Standardised dense features -> one vector, added to the hidden target. Starts at zero, and never computes below
    float32, as the heads.
    """

    def __init__(self, num_features: int, hidden: int, dim: int) -> None:
        super().__init__()
        self.num_features = num_features
        if num_features:
            self.first, self.last = nn.Linear(num_features, hidden), nn.Linear(hidden, dim)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

    def forward(self, features: Tensor | None) -> Tensor | float:
        """[..., num_features] -> [..., dim]; [dim] where none are given, as if each were its mean; 0 of a model that
        reads none.
        """
        if not self.num_features:
            return 0.0
        weight = self.first.weight
        features = weight.new_zeros(self.num_features) if features is None else features.to(weight.dtype)
        out: Tensor = self.last(functional.silu(self.first(features)))
        return out


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

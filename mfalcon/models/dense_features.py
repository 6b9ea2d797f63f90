"""Dense features of a candidate: numbers that meet it behind the layers, so that no KV state depends on them."""

from torch import Tensor, nn
from torch.nn import functional


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

"""What is around the layers of DLRM-v3: encoders of items, actions, the user, positions and ages, and of the output.

Source: Meta's generative-recommenders, `modules/` of its `DlrmHSTU`; `dlrm_v3.py` puts the parts together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfalcon.models.config import RankerConfig
from mfalcon.models.config_parts import DlrmConfig

_NORM_EPS = 1e-5
_MINUTE_S = 60.0
_LEAST_AGE_S = 1e-6
_TURN = 2 * 3.14
"""Of a period, in the trainer's own digits."""


def dlrm_of(config: RankerConfig) -> DlrmConfig:
    """What is around the layers, of a configuration that has it."""
    assert config.dlrm is not None
    return config.dlrm


class SwishNorm(nn.LayerNorm):
    """x * sigmoid(LN(x))."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return x * super().forward(x).sigmoid()


def encoder(width: int, hidden: int, dim: int) -> nn.Sequential:
    """[..., width] -> [..., dim]."""
    return nn.Sequential(
        nn.Linear(width, hidden), SwishNorm(hidden), nn.Linear(hidden, dim), nn.LayerNorm(dim, eps=_NORM_EPS)
    )


class ActionsSideBySide(nn.Module):
    """A bitmask of actions -> the vector of each that is set, zeros of the others, side by side. Candidates have a
    learned one in its place.
    """

    def __init__(self, num_actions: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_actions, dim).normal_(std=0.1))
        self.of_target = nn.Parameter(torch.empty(num_actions * dim).normal_(std=0.1))

    @property
    def width(self) -> int:
        """Of what it gives."""
        return self.table.numel()

    def forward(self, actions: Tensor) -> Tensor:
        """int64 [...] -> [..., num_actions * dim]."""
        bits = actions.unsqueeze(-1) >> torch.arange(len(self.table), device=actions.device) & 1
        return (bits.unsqueeze(-1) * self.table).flatten(-2)


class UserTokens(nn.Module):
    """The context of a request as the first tokens of the prefix, one a feature, each with a layer of its own."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        features, width, dim = config.context_features, dlrm_of(config).table_dim, config.stack[0].dim
        self.tables = nn.ModuleList(nn.Embedding(feature.num_values, width) for feature in features)
        self.weight = nn.Parameter(torch.empty(len(features), width, dim).normal_(std=(2 / (width + dim)) ** 0.5))
        self.bias = nn.Parameter(torch.zeros(len(features), dim))
        self._min_history = dlrm_of(config).min_history

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """A table for each feature."""
        return [table for table in self.tables if isinstance(table, nn.Embedding)]

    def forward(self, codes: Tensor, length: int) -> Tensor:
        """int64 [num_features], -1 for missing, and how long the trainer takes the sequence for -> [num_features, dim].

        A feature that is missing, or whose history is too short for it, is zeros before its layer.
        """
        if not len(codes):
            return self.bias
        enough = torch.tensor([length >= least for least in self._min_history], device=codes.device)
        vectors = torch.stack([table(code.clamp(min=0)) for table, code in zip(self.embeddings, codes, strict=True)])
        vectors = vectors * (enough & (codes >= 0)).unsqueeze(-1)
        return torch.bmm(vectors.unsqueeze(1), self.weight).squeeze(1) + self.bias


class Places(nn.Module):
    """Where a token stands, counted from the end of the history, and how old it is at the request."""

    def __init__(self, config: DlrmConfig, dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(config.num_positions, dim).normal_(std=0.02))
        self.age = nn.Parameter(torch.empty(config.num_ages, dim).normal_(std=0.02))
        self._last_age = config.last_age

    def of_prefix(self, times_s: Tensor, now_s: Tensor, num_user: int) -> Tensor:
        """Times of events, int64 [n], behind `num_user` tokens of the user, at a request's time [] -> [num_user + n,
        dim]. Those of the user stand at 0 and on, and are of the year 1970.
        """
        device = times_s.device
        own, back = torch.arange(num_user, device=device), torch.arange(len(times_s), 0, -1, device=device)
        all_times = torch.cat([times_s.new_zeros(num_user), times_s])
        return self.at(torch.cat([own, back + num_user])) + self.aged(now_s - all_times)

    def of_target(self, num_user: int) -> Tensor:
        """[dim], of every candidate: right behind the history, of no age."""
        return self.at(torch.tensor(num_user, device=self.position.device)) + self.age[0]

    def at(self, position: Tensor) -> Tensor:
        """int64 [...] -> [..., dim]: of positions as the trainer counts them."""
        return self.position[position.clamp(max=len(self.position) - 1)]

    def aged(self, age_s: Tensor) -> Tensor:
        """int64 [...] -> [..., dim]: of seconds before the request."""
        return self.age[self._bucket(age_s)]

    def _bucket(self, age_s: Tensor) -> Tensor:
        minutes = age_s.to(torch.float32).clamp(min=_LEAST_AGE_S) / _MINUTE_S
        return minutes.sqrt().clamp(max=self._last_age).long()


class Postprocessor(nn.Module):
    """Hidden targets and the request's time -> what an item is multiplied with."""

    def __init__(self, config: DlrmConfig, dim: int) -> None:
        super().__init__()
        self._periods = config.periods
        self.combine = nn.Linear(dim + 2 * len(config.periods), dim) if config.periods else None
        self.norm = nn.LayerNorm(dim, eps=_NORM_EPS) if config.postprocessor != "l2" else None

    def forward(self, hidden: Tensor, now_s: Tensor) -> Tensor:
        """[..., dim], [...] -> [..., dim]."""
        return self.in_units(hidden, self._units(now_s))

    def in_units(self, hidden: Tensor, units: Tensor) -> Tensor:
        """[..., dim], and which unit of each period it is, [..., num_periods] -> [..., dim]."""
        if self.combine is not None:
            hidden = self.combine(torch.cat([hidden, self._clock(units).to(hidden.dtype)], dim=-1))
        if self.norm is not None:
            return functional.layer_norm(hidden, hidden.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return functional.normalize(hidden, dim=-1, eps=1e-6)

    def _units(self, now_s: Tensor) -> Tensor:
        """[...] -> [..., num_periods], of times rounded to float32 as the trainer does."""
        found = [now_s.new_empty((*now_s.shape, 0), dtype=torch.float32)]
        for unit_s, num_units in self._periods:
            units = torch.div(now_s.to(torch.float32), float(unit_s), rounding_mode="floor")
            found.append(torch.remainder(units, float(num_units)).unsqueeze(-1))
        return torch.cat(found, dim=-1)

    def _clock(self, units: Tensor) -> Tensor:
        """[..., num_periods] -> [..., 2 * num_periods]: cosine and sine of each."""
        num_units = torch.tensor([float(num) for _, num in self._periods], device=units.device)
        angle = units.to(torch.float32) / num_units * _TURN
        return torch.stack([angle.cos(), angle.sin()], dim=-1).flatten(-2)

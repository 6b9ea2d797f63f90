"""DLRM-v3 whose keys and values outlive a request: another model than the trainer's, made of its weights
(`mfalcon import dlrm-v3 --stabilise`).

Positions count from the window's start instead of its end, so that they are the trainer's own for a history of the
anchor's length; ages are those of a request at the anchor's time; features of the user leave the prefix, which may
depend on nothing but events. What that costs is measured when it is made (docs/importing.md).
"""

import math

import torch
from torch import Tensor, nn

from mfalcon.models.base import EventTokens, PrefixRanker, Targets
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_parts import AnchorConfig
from mfalcon.models.dlrm_parts import ActionsSideBySide, Places, Postprocessor, SwishNorm, dlrm_of, encoder

_SECOND_MS = 1_000


class DlrmV3Stable(PrefixRanker):
    """The parts of `DlrmV3`, but for the user's features. Its context is which unit of each period a request is in."""

    tokens_per_event = 1
    prefix_stable = True
    multiplies_tokens = True
    reads_positions = True
    is_trained_here = False
    config_part = "dlrm"

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        around, dim = dlrm_of(config), config.stack[0].dim
        self._token_scale = math.sqrt(dim)
        del self.actions  # of an event it reads which are set, and no value
        self.bits = ActionsSideBySide(len(config.actions), around.action_dim)
        self.content = encoder(around.table_dim, around.hidden_dim, dim)
        self.action = encoder(self.bits.width, around.hidden_dim, dim)
        self.places = Places(around, dim)
        self.post = Postprocessor(around, dim)
        self.item = encoder(around.table_dim, around.item_dim, dim)
        self.heads = nn.Sequential(
            nn.Linear(dim, config.head_dim), SwishNorm(config.head_dim), nn.Linear(config.head_dim, len(config.tasks))
        )

    @property
    def anchor(self) -> AnchorConfig:
        """Where it counts from."""
        anchor = dlrm_of(self.config).anchor
        assert anchor is not None
        return anchor

    def prefix_tokens(self, events: EventTokens) -> Tensor:
        """See `PrefixRanker.prefix_tokens`; positions come with `placed`."""
        history = self.content(self.items(events.rows)) + self.action(self.bits(events.actions))
        times_s = torch.div(events.times, _SECOND_MS, rounding_mode="floor")
        out: Tensor = history * self._token_scale + self.places.aged(self.anchor.time_s - times_s)
        return out

    def placed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See `PrefixRanker.placed`."""
        back = (self.anchor.num_events - positions).clamp(min=1)
        return tokens + self.places.at(self.anchor.num_user_tokens + back)

    def target_tokens(self, targets: Targets) -> Tensor:
        """See `PrefixRanker.target_tokens`."""
        x = (self.content(self.items(targets.rows)) + self.action(self.bits.of_target)) * self._token_scale
        out: Tensor = x + self.places.of_target(self.anchor.num_user_tokens)
        return out

    def predict(self, hidden: Tensor, targets: Targets) -> Tensor:
        """See `PrefixRanker.predict`."""
        wide = self.heads[0].get_parameter("weight").dtype
        units = targets.context.clamp(min=0).expand(*hidden.shape[:-1], -1)
        user = self.post.in_units(hidden.to(wide), units)
        raw: Tensor = self.heads(user * self.item(self.items(targets.rows)).to(wide))
        return raw

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """See `Ranker.rescale`."""
        last = self.heads[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[task] *= scale
            last.bias[task] = scale * last.bias[task] + shift

    def cast(self, dtype: torch.dtype) -> None:
        """See `Ranker.cast`."""
        self.to(dtype)
        if dtype.itemsize < torch.float32.itemsize:
            self.heads.float()
            self.post.float()

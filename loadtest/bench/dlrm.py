"""The DLRMs that the benchmarks hold a generative ranker against: three sizes of the `din` network, of random weights.

Embedding tables stand for the fields of a user and of an item; a lookup is counted as no work.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfalcon.errors import ConfigError
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import ContextFeature, SideFeature
from mfalcon.models.config_parts import DinConfig
from mfalcon.models.din_network import DinNetwork
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build

_TASKS = 2
_ACTIONS, _VALUES = 5, 100
"""Of the registry's form: actions of an event, values of each field."""


@dataclass(frozen=True, slots=True)
class DlrmSize:
    """Fields of a user and of an item (`network.dim` numbers each), the last events that are read, and the widths."""

    name: str
    num_events: int
    network: DinConfig
    tower: int
    user_fields: int = 16
    item_fields: int = 8

    @property
    def user_dim(self) -> int:
        """Numbers of a user."""
        return self.user_fields * self.network.dim

    @property
    def item_dim(self) -> int:
        """Numbers of a candidate."""
        return self.item_fields * self.network.dim


def _network(cross_rank: int, num_experts: int, experts: tuple[int, int]) -> DinConfig:
    return DinConfig(
        dim=64,
        activation=(80, 40),
        num_cross_layers=3,
        cross_rank=cross_rank,
        num_experts=num_experts,
        experts=experts,
    )


DLRMS = {
    size.name: size
    for size in (
        DlrmSize("small", 50, _network(64, 4, (256, 128)), tower=64),
        DlrmSize("base", 100, _network(128, 4, (512, 256)), tower=128),
        DlrmSize("wide", 200, _network(256, 6, (1024, 512)), tower=256),
    )
}


def dlrm_named(name: str) -> DlrmSize:
    """Raises ConfigError for a name that is not in `DLRMS`."""
    if name not in DLRMS:
        raise ConfigError(f"dlrm: got {name!r}, must be one of {', '.join(DLRMS)}")
    return DLRMS[name]


def random_dlrm(size: DlrmSize, dtype: torch.dtype, seed: int) -> DinNetwork:
    """A network with seeded weights, ready to serve in a dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DinNetwork(
            size.network,
            num_events=size.num_events,
            user_dim=size.user_dim,
            item_dim=size.item_dim,
            tower=size.tower,
            num_tasks=_TASKS,
        )
    return network.to(dtype).eval().requires_grad_(False)


def dlrm_checkpoint(size: DlrmSize, num_items: int, seed: int = 0) -> Checkpoint:
    """The same network as a model of the registry over items 1 to `num_items`, as `mfalcon.models.checkpoint.load`
    returns one: a user's fields are context features, an item's are itself and side features.
    """
    dim, fields = size.network.dim, range(size.item_fields - 1)
    words = tuple(f"value {value}" for value in range(_VALUES - 1))
    config = RankerConfig(
        name=f"dlrm-{size.name}",
        architecture="din",
        din=size.network.model_copy(update={"context_dim": dim, "side_fields": True}),
        actions=tuple(f"action_{index}" for index in range(_ACTIONS)),
        side_features=tuple(SideFeature(name=f"item_{field}", kind="category", vocabulary=words) for field in fields),
        context_features=tuple(
            ContextFeature(name=f"user_{field}", num_values=_VALUES) for field in range(size.user_fields)
        ),
        tasks=(
            Task(name="like", kind="binary", value_at_least=4.0),
            Task(name="rating", kind="regression", center=3.0),
        ),
        blend={"like": 1.0},
        head_dim=size.tower,
        num_items=num_items + 1,
        max_history=size.num_events,
        window_chunk=1,
    )
    rng, numbers = np.random.default_rng(seed), range(1, num_items + 1)
    side = {f"item_{field}": rng.integers(0, _VALUES, num_items) for field in fields}
    items = ItemTable(np.array(numbers), tuple(f"item {number}" for number in numbers), side)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config).eval().requires_grad_(False)
    model.items.load_items(items)
    return Checkpoint(model, items, f"random-dlrm-{size.name}-{num_items}-{seed}")


def random_user(size: DlrmSize, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """A user's fields [user_dim] and last events [num_events, dim], looked up."""
    generator = torch.Generator().manual_seed(seed)
    user = torch.randn(size.user_dim, generator=generator)
    return user.to(dtype), torch.randn(size.num_events, size.network.dim, generator=generator).to(dtype)


def random_candidates(size: DlrmSize, num_candidates: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Candidates' fields [num_candidates, item_dim], looked up."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_candidates, size.item_dim, generator=generator).to(dtype)

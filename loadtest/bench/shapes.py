"""The model shapes that the benchmarks measure, with random seeded weights, histories and candidates.

Weights are random because no time here depends on their values.
"""

from dataclasses import dataclass

import torch

from mfalcon.errors import ConfigError
from mfalcon.models.base import EventTokens, Ranker, Targets
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_layers import LayerConfig, RelativeBiasConfig
from mfalcon.models.registry import build

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What the benchmarks compute in."""

REQUEST_TIME_MS = 1_700_000_000_000
"""When every request of a benchmark is made; histories end before it."""

_NUM_ITEMS = 10_000
_NUM_ACTIONS = 5
_MAX_HISTORY = 16_384
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers, width (head dimensions are dim / num_heads) and heads of a ranker."""

    name: str
    num_layers: int
    dim: int
    num_heads: int


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S", num_layers=3, dim=256, num_heads=4),
        Shape("B", num_layers=8, dim=512, num_heads=8),
        Shape("tiny", num_layers=2, dim=32, num_heads=2),
    )
}
"""S and B are published; tiny is for trying the tools themselves."""


def shape_named(name: str) -> Shape:
    """Raises ConfigError for a name that is not in `SHAPES`."""
    if name not in SHAPES:
        raise ConfigError(f"shape: got {name!r}, must be one of {', '.join(SHAPES)}")
    return SHAPES[name]


def dtype_named(name: str) -> torch.dtype:
    """Raises ConfigError for a name that is not in `DTYPES`."""
    if name not in DTYPES:
        raise ConfigError(f"dtype: got {name!r}, must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def ranker_config(shape: Shape) -> RankerConfig:
    """A dfgr ranker of a shape: merged tokens (one per event), rab on, two tasks."""
    head_dim = shape.dim // shape.num_heads
    return RankerConfig(
        name=f"bench-{shape.name}",
        architecture="dfgr",
        num_layers=shape.num_layers,
        layer=LayerConfig(
            dim=shape.dim,
            num_heads=shape.num_heads,
            qk_dim=head_dim,
            v_dim=head_dim,
            attention_norm=1024.0,
            bias=RelativeBiasConfig(num_positions=_MAX_HISTORY),
        ),
        actions=tuple(f"action_{index}" for index in range(_NUM_ACTIONS)),
        tasks=(
            Task(name="like", kind="binary", value_at_least=4.0),
            Task(name="rating", kind="regression", center=3.0),
        ),
        blend={"like": 1.0},
        head_dim=shape.dim,
        num_items=_NUM_ITEMS,
        max_history=_MAX_HISTORY,
        window_chunk=256,
    )


def random_model(shape: Shape, dtype: torch.dtype, seed: int) -> Ranker:
    """A ranker with seeded weights, ready to serve in a dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(ranker_config(shape))
    model.cast(dtype)
    return model.eval()


def random_events(num_events: int, seed: int) -> EventTokens:
    """A history of the last 90 days: random items, actions, values and (ascending) times."""
    generator = torch.Generator().manual_seed(seed)
    ages = torch.randint(1, 90 * _DAY_MS, (num_events,), generator=generator).sort(descending=True).values
    return EventTokens(
        rows=torch.randint(0, _NUM_ITEMS, (num_events,), generator=generator),
        actions=1 << torch.randint(0, _NUM_ACTIONS, (num_events,), generator=generator),
        values=torch.randint(1, 6, (num_events,), generator=generator).double(),
        times=REQUEST_TIME_MS - ages,
    )


def random_targets(num_targets: int, seed: int) -> Targets:
    """Random candidates; the model reads no context."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, _NUM_ITEMS, (num_targets,), generator=generator)
    return Targets(rows, torch.zeros(0, dtype=torch.int64))


def events_between(events: EventTokens, start: int, stop: int) -> EventTokens:
    """Events start to stop - 1 of a history."""
    return EventTokens(
        events.rows[start:stop], events.actions[start:stop], events.values[start:stop], events.times[start:stop]
    )

"""Checkpoints with random weights: something to serve and to measure where no training has been."""

import numpy as np
import torch

from loadtest.bench.shapes import Shape, ranker_config
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import COUNTERS, CountersConfig, DenseFeature, GraphConfig, SideFeature
from mfalcon.models.items import ItemTable
from mfalcon.models.registry import build

_WEIGHT_STD = 0.4
"""At a width of 12; narrower weights for wider layers, so that scores neither saturate nor forget the history."""


def random_checkpoint(
    shape: Shape,
    num_items: int,
    seed: int = 0,
    *,
    max_history: int = 4_096,
    dtype: torch.dtype = torch.float32,
    value_scale: float | None = None,
    decades: tuple[str, ...] = (),
    with_counters: bool = False,
    with_graph: bool = False,
) -> Checkpoint:
    """A loaded checkpoint of a shape over items 1 to `num_items`, as `mfalcon.models.checkpoint.load` returns one.

    value_scale: of events' values, which are not read if that is None. decades: the vocabulary of a side feature of
    that name, which there is not if it is empty. with_counters: that it reads the streaming counters.
    with_graph: that it reads graph vectors.
    `mfalcon.models.checkpoint.save` writes it for `mfalcon serve`; the fingerprint is then the written one's.
    """
    config = _config(shape, num_items, max_history, value_scale)
    side = {}
    if decades:
        config = config.model_copy(update={"side_features": (_decade(decades),)})
        side = {"decade": np.arange(num_items) % (1 + len(decades))}
    if with_counters:
        features = tuple(DenseFeature(name=name) for name in COUNTERS)
        likes = next(task.name for task in config.tasks if task.kind == "binary")
        config = config.model_copy(update={"counters": CountersConfig(task=likes, like_rate=0.5, features=features)})
    if with_graph:
        likes = next(task.name for task in config.tasks if task.kind == "binary")
        config = config.model_copy(update={"graph": GraphConfig(task=likes)})
    numbers = range(1, num_items + 1)
    items = ItemTable(np.array(numbers), tuple(f"item {number}" for number in numbers), side)
    model = build(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.normal_(std=_WEIGHT_STD * (12 / shape.dim) ** 0.25, generator=generator)
    model.items.load_items(items)
    model.cast(dtype)
    return Checkpoint(model, items, f"random-{shape.name}-{num_items}-{max_history}-{seed}")


def _decade(vocabulary: tuple[str, ...]) -> SideFeature:
    return SideFeature(name="decade", kind="category", vocabulary=vocabulary)


def _config(shape: Shape, num_items: int, max_history: int, value_scale: float | None) -> RankerConfig:
    config = ranker_config(shape).model_dump()
    changes: dict[str, object] = {"num_items": num_items + 1, "value_scale": value_scale}
    changes |= {"max_history": max_history, "window_chunk": max(1, max_history // 8)}
    return RankerConfig.model_validate(config | changes)

"""The graph's features of a batch, with gradients: the formulas of `mfalcon/features/graph.py`."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from mfalcon.features.counters import LikeRule
from mfalcon.features.standard import LARGEST
from mfalcon.models.base import EventTokens, Targets
from mfalcon.models.config import RankerConfig


def with_graph(
    targets: Targets, events: EventTokens, visible: Tensor, of_targets: Tensor, of_events: Tensor, config: RankerConfig
) -> Targets:
    """The targets with the graph's features behind their other dense ones.

    targets, visible: [batch, m]; events: [batch, n], of which each target sees the first `visible`. of_targets,
    of_events: their vectors, [batch, m, dim] and [batch, n, dim].
    """
    assert config.graph is not None
    liked = likes(events, config)
    stop, start = visible, (visible - config.graph.max_events).clamp(min=0)
    levels = [of_targets]
    for chosen in (liked, ~liked):
        num = _between(chosen.unsqueeze(-1).double(), start, stop)
        total = _between(of_events.double() * chosen.unsqueeze(-1), start, stop)
        levels.append((of_targets * (total / num.clamp(min=1))).to(of_targets.dtype))
    features = torch.cat(levels, dim=-1).clamp(-LARGEST, LARGEST)
    dense = features if targets.dense is None else torch.cat([targets.dense.to(features.dtype), features], dim=-1)
    return replace(targets, dense=dense)


def likes(events: EventTokens, config: RankerConfig) -> Tensor:
    """Which events are likes of the graph's task: bool, as `LikeRule` says."""
    rule = LikeRule.of_task(config.graph_task, config.actions)
    if rule.value_at_least is not None:
        return events.values >= rule.value_at_least
    return (events.actions & rule.actions) != 0


def _between(numbers: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Sums of numbers [batch, n, k] over start <= event < stop, both [batch, m]: [batch, m, k]."""
    total = functional.pad(numbers.cumsum(1), (0, 0, 1, 0))
    rows = torch.arange(len(numbers), device=numbers.device).unsqueeze(-1)
    return total[rows, stop] - total[rows, start]

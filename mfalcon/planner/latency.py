"""What a rank will take: counted work times what this machine was seen to need for it.

A few rankers of random weights are served by a real engine and asked in turns; how long each takes is fitted by the
work that it counts. The time is that of a rank whose state is cached, with a full window, asked alone and without a
network: what a server adds by its transport, its queue and an append is beside it.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mfalcon.engine.compose import EngineConfig, compose_all
from mfalcon.engine.ranker import RankerOptions
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.types import EVENT_DTYPE, Append, RankRequest, no_events

_NOW_MS, _READY_S, _WARM_UP = 1_700_000_000_000, 300.0, 5
_BUDGET_BYTES = 32 << 20
_SWEEPS = 2_000

Reals = NDArray[np.float64]


def counted(config: RankerConfig, num_candidates: int) -> Reals:
    """The terms of a rank: a call; a layer; FLOPs of its linear layers and of its attention; SiLUs; numbers that are
    looked up and read out. Source of the counts: HSTU paper, section 3.4, with the prefix cached.
    """
    layer, num_layers = config.stack
    rows, heads = float(num_candidates), layer.num_heads
    n = config.pairs.scoring(config.max_history, 1)
    width = heads * (layer.qk_dim + layer.v_dim)
    linear = rows * 2 * layer.dim * (2 * width + heads * layer.v_dim)
    attention = rows * 2 * width * (n + 1)
    per_layer = (1.0, linear, attention, rows * n * heads)
    return np.array([1.0, *(num_layers * term for term in per_layer), rows * layer.dim])


class LatencyLaw:
    """Seconds of a rank by its counted terms, with no negative price; fitted to relative errors."""

    def __init__(self, configs: Sequence[RankerConfig], seconds: Reals, num_candidates: int) -> None:
        self._num_candidates = num_candidates
        terms = np.stack([counted(config, num_candidates) for config in configs])
        scale = terms.max(0)
        rows = terms / scale / seconds[:, None]
        gram, moment = rows.T @ rows + 1e-9 * np.eye(len(scale)), rows.sum(0)
        prices = np.zeros(len(scale))
        for _ in range(_SWEEPS):  # coordinate descent: convex, and six numbers
            for i in range(len(prices)):
                prices[i] = max(0.0, prices[i] + (moment[i] - gram[i] @ prices) / gram[i, i])
        self._prices = prices / scale

    def seconds(self, config: RankerConfig) -> float:
        """Of a rank by such a model."""
        return float(counted(config, self._num_candidates) @ self._prices)


@dataclass(frozen=True, slots=True)
class Memory:
    """parameters: of the model, its item table's rows included. state_bytes: of one user's KV state, a full window in
    float32; half of it in bfloat16.
    """

    parameters: int
    state_bytes: int


def memory_of(dataset: Dataset, config: RankerConfig) -> Memory:
    """What a model and a user's state take."""
    model = _random(dataset, config).prefix_model
    tokens = config.max_history * model.tokens_per_event
    return Memory(sum(p.numel() for p in model.parameters()), tokens * model.kv_shape().bytes_per_token())


def measure(
    dataset: Dataset, configs: Mapping[str, RankerConfig], num_candidates: int, cores: int, rounds: int
) -> dict[str, float]:
    """Median seconds of a rank by each of some models of random weights, in turns on one engine of so many cores."""
    checkpoints = {name: _random(dataset, config) for name, config in configs.items()}
    return asyncio.run(_measure(dataset, checkpoints, num_candidates, cores, rounds))


async def _measure(
    dataset: Dataset, checkpoints: Mapping[str, Checkpoint], num_candidates: int, cores: int, rounds: int
) -> dict[str, float]:
    options = [
        (checkpoint, RankerOptions(name=name, kv_budget_bytes=_BUDGET_BYTES, max_candidates=max(num_candidates, 1)))
        for name, checkpoint in checkpoints.items()
    ]
    engine = compose_all(options, EngineConfig(threads=cores))
    try:
        await asyncio.to_thread(engine.wait_ready, _READY_S)
        rng, known = np.random.default_rng(0), dataset.items.item_id
        longest = max(checkpoint.model.config.max_history for checkpoint in checkpoints.values())
        events = np.zeros(longest, dtype=EVENT_DTYPE)
        events["item_id"], events["actions"] = rng.choice(known, longest), 1
        events["value"] = float(np.median(dataset.events["value"]))
        events["time_ms"] = _NOW_MS - 10**9 + np.arange(longest) * 10**5
        for name, checkpoint in checkpoints.items():  # each model has a user of just its window
            await engine.append_events(name, Append(events[: checkpoint.model.config.max_history], 0))
        candidates, seconds = rng.choice(known, num_candidates), {name: list[float]() for name in checkpoints}
        for turn in range(_WARM_UP + rounds):
            for name in checkpoints:
                request = RankRequest(name, candidates, 10, _NOW_MS, no_events(), {})
                await engine.rank(request, None, name)  # a served model finds the caches warm
                began = time.perf_counter()
                await engine.rank(request, None, name)
                if turn >= _WARM_UP:
                    seconds[name].append(time.perf_counter() - began)
        return {name: float(np.median(times)) for name, times in seconds.items()}
    finally:
        await engine.close()


def _random(dataset: Dataset, config: RankerConfig) -> Checkpoint:
    torch.manual_seed(0)
    model = build(config).eval().requires_grad_(False)
    model.items.load_items(dataset.items)
    return Checkpoint(model, dataset.items, f"planner-{config.num_layers}-{config.dim}-{config.max_history}")

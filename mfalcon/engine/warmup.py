"""What an engine measures of its model and machine once, at start."""

import time

import torch

from mfalcon.algorithm import prefill, score
from mfalcon.models.base import EventTokens, Ranker, Targets
from mfalcon.state.cost import EncodeCost


def measure_microbatch(model: Ranker, sizes: tuple[int, ...] = (64, 128, 256, 512)) -> int:
    """The fastest microbatch for this model on this machine, timed once on a full window of zeros."""
    config = model.config
    num_targets = 2 * max(sizes)
    device = model.items.id.weight.device
    zeros = torch.zeros(max(num_targets, config.max_history), dtype=torch.int64, device=device)
    events = EventTokens(*(zeros[: config.max_history],) * 4)
    targets = Targets(zeros[:num_targets], zeros[: len(config.context_features)])
    state = prefill(model, events)
    seconds = {}
    for size in sizes:
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            score(model, state, targets, 0, size)
            best = min(best, time.perf_counter() - began)
        seconds[size] = best
    return min(seconds, key=seconds.__getitem__)


def measure_encoding(model: Ranker, cost: EncodeCost, sizes: tuple[int, ...] = (64, 256, 1_024, 4_096)) -> None:
    """Tell a cost how long prefills of some lengths take, so that the first decisions are not blind.

    Events of zeros; lengths up to the model's window. The first run of each size warms it up and does not count.
    """
    device, limit = model.items.id.weight.device, model.config.max_history
    for size in sorted({min(size, limit) for size in sizes}):
        events = EventTokens(*(torch.zeros(size, dtype=torch.int64, device=device),) * 4)
        for run in range(2 if size >= 1_024 else 4):
            began = time.perf_counter()
            state = prefill(model, events)
            if run:
                cost.observe(0, state.num_tokens, time.perf_counter() - began)

"""What an engine measures of its model and machine once, at start."""

import time

import torch

from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import ServedModel
from mfalcon.engine.clock import clock_of
from mfalcon.engine.workers import WorkerPool
from mfalcon.kvcache.cost import EncodeCost, ScoreCost
from mfalcon.models.base import EventTokens, Targets

_LONG_SECONDS = 0.2
_SCORED = ((64, 64), (64, 1_024), (1_024, 64), (1_024, 1_024), (4_096, 512))


def measure_microbatch(served: ServedModel, sizes: tuple[int, ...] = (48, 96, 192, 512)) -> int:
    """The fastest microbatch for this model on this machine, timed once on a full window of zeros."""
    model = served.model
    config = model.config
    num_targets = 2 * max(sizes)
    device = model.items.id.weight.device
    zeros = torch.zeros(max(num_targets, config.max_history), dtype=torch.int64, device=device)
    events = EventTokens(*(zeros[: config.max_history],) * 4)
    targets = Targets(zeros[:num_targets], zeros[: len(config.context_features)])
    state = prefill(served, events)
    seconds = {}
    for size in sizes:
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            score(served, state, targets, 0, size)
            best = min(best, time.perf_counter() - began)
        seconds[size] = best
    return min(seconds, key=seconds.__getitem__)


def measure_side_by_side(
    served: ServedModel, pool: WorkerPool, microbatch: int, sizes: tuple[int, ...] = (32, 128, 512, 2_048)
) -> int:
    """Most candidates of a request that is better scored on one core, beside as many others as there are workers, than
    on all cores, one after the other. 0 if none is. Stops where a size takes long or is not 5% faster.
    """
    config, zeros = served.model.config, torch.zeros(max(sizes), dtype=torch.int64)
    events = EventTokens(*(zeros[: min(config.max_history, 1_024)],) * 4)
    state = prefill(served, events)
    small = 0
    for size in sizes:
        targets = Targets(zeros[:size], zeros[: len(config.context_features)])

        def one(_: int, targets: Targets = targets) -> None:
            score(served, state, targets, 0, microbatch)

        apart = together = float("inf")
        for _ in range(3):
            began = time.perf_counter()
            for item in range(pool.num_workers):
                one(item)
            between = time.perf_counter()
            pool.run(one, range(pool.num_workers))
            apart, together = min(apart, between - began), min(together, time.perf_counter() - between)
        if together > 0.95 * apart:
            break
        small = size
        if apart > _LONG_SECONDS:
            break
    return small


def measure_encoding(served: ServedModel, cost: EncodeCost, sizes: tuple[int, ...] = (64, 256, 1_024, 4_096)) -> None:
    """Tell a cost how long prefills of some lengths take, so that the first decisions are not blind.

    Events of zeros; lengths up to the model's window. The first run of each size warms it up and does not count. Stops
    where a size takes long.
    """
    model = served.model
    device, limit = model.items.id.weight.device, model.config.max_history
    clock = clock_of(device)
    for size in sorted({min(size, limit) for size in sizes}):
        events = EventTokens(*(torch.zeros(size, dtype=torch.int64, device=device),) * 4)
        for run in range(2 if size >= 1_024 else 4):
            began = clock.now()
            state = prefill(served, events)
            seconds = clock.seconds(began, clock.now())
            if run:
                cost.observe(0, state.num_tokens, seconds)
        if seconds > _LONG_SECONDS:
            return


def measure_scoring(
    served: ServedModel, cost: ScoreCost, microbatch: int, sizes: tuple[tuple[int, int], ...] = _SCORED
) -> None:
    """Tell a cost how long scores of some sizes take, (events, candidates), so that the first requests are admitted by
    more than a guess. Events of zeros, as many as the model's window holds; stops where a size takes long.
    """
    config, device = served.model.config, served.model.items.id.weight.device
    clock = clock_of(device)
    for most_events, num_candidates in sizes:
        num_events = min(most_events, config.max_history)
        zeros = torch.zeros(max(num_events, num_candidates), dtype=torch.int64, device=device)
        state = prefill(served, EventTokens(*(zeros[:num_events],) * 4))
        targets = Targets(zeros[:num_candidates], zeros[: len(config.context_features)])
        seconds = 0.0
        for run in range(3):
            began = clock.now()
            score(served, state, targets, 0, microbatch)
            seconds = clock.seconds(began, clock.now())
            if run:
                cost.observe(state.num_tokens, num_candidates, seconds)
        if seconds > _LONG_SECONDS:
            return

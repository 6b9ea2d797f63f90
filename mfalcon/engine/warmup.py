"""What an engine measures of its model and machine once, at start."""

import time
from collections.abc import Callable
from typing import Final

import torch

from mfalcon.algorithm import UserState, prefill, score, user_state
from mfalcon.backends.select import Served, ServedModel
from mfalcon.engine.clock import clock_of
from mfalcon.engine.workers import WorkerPool
from mfalcon.kvcache.cost import EncodeCost, ScoreCost
from mfalcon.kvcache.state import KVState
from mfalcon.models.base import EventTokens, Targets

SMALL_SECONDS: Final = 0.02
"""Most that a request takes on one core which has that core alone, beside others, where all cores in turn would do.

Side by side N requests share N cores without a barrier, which is worth 5% of the throughput and more; but each of them
takes as long as on one core, and the one that would have gone first is answered up to (N - 1) / N of that later. At 20
ms that is 10 ms on two cores, and no more than 20 on many: an eighth to a quarter of a bound of 80 ms on the 99th
percentile, and about what a step of a large request holds a small one up anyway (`SLICE_S` of all cores).
"""
_GAIN = 0.95
"""Side by side must take no more than this of the time that all cores take for the same requests in turn."""
_LONG_SECONDS = 0.2
_SCORED = ((64, 64), (64, 1_024), (1_024, 64), (1_024, 1_024), (4_096, 512))


def measure_microbatch(served: Served, sizes: tuple[int, ...] = (48, 96, 192, 512)) -> int:
    """The fastest microbatch for this model on this machine, timed once on a full window of zeros."""
    config = served.model.config
    num_targets = 2 * max(sizes)
    targets, state = _zero_targets(served, num_targets), _zero_state(served, config.max_history)
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
    served: Served,
    pool: WorkerPool,
    microbatch: int,
    sizes: tuple[int, ...] = (32, 128, 256, 512, 1_024, 2_048),
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Most candidates of a request that is better scored on one core, beside as many others as there are workers, than
    on all cores, one after the other. 0 if none is. Stops at a size that is not 5% faster so, and at one that takes a
    core longer than `SMALL_SECONDS`: what is won of throughput would be lost twice in latency.

    clock: seconds.
    """
    state = _zero_state(served, min(served.model.config.max_history, 1_024))
    small = 0
    for size in sizes:
        targets = _zero_targets(served, size)

        def one(_: int, targets: Targets = targets) -> None:
            score(served, state, targets, 0, microbatch)

        apart = together = float("inf")
        for _ in range(3):
            began = clock()
            for item in range(pool.num_workers):
                one(item)
            between = clock()
            pool.run(one, range(pool.num_workers))
            apart, together = min(apart, between - began), min(together, clock() - between)
        if together > SMALL_SECONDS or together > _GAIN * apart:
            break
        small = size
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
    served: Served, cost: ScoreCost, microbatch: int, sizes: tuple[tuple[int, int], ...] = _SCORED
) -> None:
    """Tell a cost how long scores of some sizes take, (events, candidates), so that the first requests are admitted by
    more than a guess. Events of zeros, as many as the model's window holds; stops where a size takes long.
    """
    config, clock = served.model.config, clock_of(served.model.device)
    for most_events, num_candidates in sizes:
        num_events = min(most_events, config.max_history)
        state, targets = _zero_state(served, num_events), _zero_targets(served, num_candidates)
        num_seen = state.num_tokens if isinstance(state, KVState) else state.num_events
        seconds = 0.0
        for run in range(3):
            began = clock.now()
            score(served, state, targets, 0, microbatch)
            seconds = clock.seconds(began, clock.now())
            if run:
                cost.observe(num_seen, num_candidates, seconds)
        if seconds > _LONG_SECONDS:
            return


def _zero_state(served: Served, num_events: int) -> UserState:
    """What candidates are scored against, of so many events of zeros."""
    zeros = torch.zeros(num_events, dtype=torch.int64, device=served.model.device)
    return user_state(served, EventTokens(*(zeros,) * 4), _zero_targets(served, 0).context, 0)


def _zero_targets(served: Served, num_candidates: int) -> Targets:
    """Candidates of zeros."""
    config, device = served.model.config, served.model.device
    rows, codes = (
        torch.zeros(n, dtype=torch.int64, device=device) for n in (num_candidates, len(config.context_features))
    )
    return Targets(rows, codes)

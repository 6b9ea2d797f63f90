"""How the benchmarks take time: competitors take turns, so that a noisy neighbour slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Samples of one duration, in milliseconds."""

    median_ms: float
    min_ms: float
    max_ms: float
    num_samples: int


def spread(seconds: Sequence[float]) -> Spread:
    """Median and range of samples in seconds."""
    return Spread(
        median_ms=statistics.median(seconds) * 1e3,
        min_ms=min(seconds) * 1e3,
        max_ms=max(seconds) * 1e3,
        num_samples=len(seconds),
    )


def take_turns(
    actions: Mapping[str, Callable[[int], object]], seconds: float, min_rounds: int, max_rounds: int
) -> dict[str, list[float]]:
    """Run every action once a round until the time is up; returns the seconds of each, sample i from round i.

    An action is given its round. The caller has warmed them up.
    """
    samples: dict[str, list[float]] = {name: [] for name in actions}
    began = time.perf_counter()
    for index in range(max_rounds):
        if index >= min_rounds and time.perf_counter() - began > seconds:
            break
        for name, action in actions.items():
            start = time.perf_counter()
            action(index)
            samples[name].append(time.perf_counter() - start)
    return samples


def best_seconds(action: Callable[[], object], seconds: float) -> float:
    """The fastest of the runs that fit into the time, at least two after a warm-up."""
    action()
    samples = take_turns({"action": lambda _: action()}, seconds, min_rounds=2, max_rounds=1_000)
    return min(samples["action"])

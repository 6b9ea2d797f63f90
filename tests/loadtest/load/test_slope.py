"""Leaks are seen through noise, noise is no leak, and the intervals are as honest as they say."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.load.slope import slope_of
from loadtest.load.watched import MEMORY, STATES, THREADS, series_of

SECONDS = np.arange(0.0, 1800, 5)
NOISE = np.random.default_rng(7).uniform(-5, 5, len(SECONDS))


def verdict(values: Sequence[float] | NDArray[np.float64]) -> str:
    series = series_of(MEMORY, "engine", SECONDS.tolist(), list(values))
    assert series is not None
    assert series.grows == (series.verdict == "GROWS")
    return series.verdict


def waves(seed: int, seconds: float) -> NDArray[np.float64]:
    """Noise of size 1 that forgets itself in so many seconds."""
    keeps = np.exp(-5 / seconds)
    shocks = np.random.default_rng(seed).normal(size=len(SECONDS)) * np.sqrt(1 - keeps**2)
    values = [shocks[0] / np.sqrt(1 - keeps**2)]
    for shock in shocks[1:]:
        values.append(keeps * values[-1] + shock)
    return np.array(values)


def test_a_leak_of_a_mebibyte_a_minute_is_seen() -> None:
    slope = slope_of(SECONDS.tolist(), (500 + SECONDS / 60 + NOISE).tolist())
    assert slope is not None
    assert slope.low < 60 < slope.high < 70
    assert not slope.zero_within_noise
    assert verdict(500 + SECONDS / 60 + NOISE) == "GROWS"


def test_noise_is_no_leak() -> None:
    assert verdict(500 + NOISE) == "zero within noise"
    assert verdict(np.full(len(SECONDS), 37.0)) == "zero within noise"


def test_growth_before_the_server_has_settled_is_not_judged() -> None:
    assert verdict(np.minimum(SECONDS, 300)) == "zero within noise"


def test_what_shrinks_or_grows_less_than_is_borne_is_said_to() -> None:
    assert verdict(500 - SECONDS / 60 + NOISE) == "falls"
    assert verdict(500 + 0.5 * SECONDS / 3600) == "rises by less than 1"
    seconds = SECONDS.tolist()
    cache = series_of(STATES, "model", seconds, seconds)
    assert cache is not None and cache.verdict == "rises" and not cache.grows


def test_one_thread_that_starts_late_is_no_trend_but_one_every_five_minutes_is() -> None:
    once = series_of(THREADS, "engine", SECONDS.tolist(), (9 + (SECONDS >= 900)).tolist())
    assert once is not None and once.verdict == "zero within noise"
    again = series_of(THREADS, "engine", SECONDS.tolist(), (9 + SECONDS // 300).tolist())
    assert again is not None and again.grows
    assert (again.first, again.last, again.most) == (9, 14, 14)


@pytest.mark.parametrize("seconds", [0.01, 15.0, 30.0, 60.0, 120.0])
def test_intervals_hold_zero_as_often_as_they_say(seconds: float) -> None:
    slopes = [slope_of(SECONDS.tolist(), waves(seed, seconds).tolist()) for seed in range(300)]
    share = np.mean([slope is not None and slope.zero_within_noise for slope in slopes])
    assert share >= 0.88  # of samples as if each were new: 0.2 to 0.6 but for the first


def test_absent_samples_are_left_out_and_too_few_are_not_judged() -> None:
    holes = [None if turn % 3 == 0 else 2.0 for turn in range(len(SECONDS))]
    series = series_of(MEMORY, "front-end 1", SECONDS.tolist(), holes)
    assert series is not None and series.verdict == "zero within noise"
    few = series_of(MEMORY, "engine", SECONDS[:49].tolist(), [1.0] * 49)
    assert few is not None and few.slope is None and few.verdict == "too few samples"
    assert series_of(MEMORY, "engine", [0.0], [None]) is None

"""The law of quality: it finds a law again that runs were made of, and says how sure it is."""

import numpy as np
import pytest

from mfalcon.planner.grid import FITTED, HELD_OUT, Reach
from mfalcon.planner.law import Law, PlainLogs, Reals, left_out

NOISE = 0.001


def sizes(rows: tuple[tuple[int, float, float, float], ...]) -> Reals:
    shapes = Reach().shapes(rows)
    return np.array([(s.layers, s.dim, s.max_history, 60_000 * s.users_share) for s in shapes], dtype=np.float64)


def truth(of: Reals) -> Reals:
    """More of each thing helps less and less."""
    layers, dim, history, data = of.T
    out: Reals = 0.78 - 0.004 / layers - 0.25 / dim - 0.6 / history + 0.01 * np.log(data / 60_000) - 300 / data
    return out


@pytest.fixture(scope="module")
def noisy() -> Reals:
    return truth(sizes(FITTED)) + np.random.default_rng(0).normal(0, NOISE, len(FITTED))


def test_it_finds_a_law_again(noisy: Reals) -> None:
    law, held = Law(sizes(FITTED), noisy), sizes(HELD_OUT)
    errors = np.abs(law.at(held) - truth(held))
    assert errors.mean() < 0.002
    assert errors.mean() < 0.5 * np.abs(PlainLogs(sizes(FITTED), noisy).at(held) - truth(held)).mean()


def test_runs_left_out_are_predicted_better_than_by_plain_logarithms(noisy: Reals) -> None:
    ours, plain = (np.abs(left_out(kind, sizes(FITTED), noisy)).mean() for kind in (Law, PlainLogs))
    assert ours < 0.006
    assert ours < plain


def test_the_interval_holds_what_it_says(noisy: Reals) -> None:
    law, held = Law(sizes(FITTED), noisy), sizes(HELD_OUT)
    for row, true in zip(held, truth(held), strict=True):
        found = law.predict(row.tolist())
        assert found.auc == pytest.approx(float(law.at(row[None])[0]))
        assert abs(found.auc - true) < 3 * found.deviation
        assert found.deviation < 0.02


def test_further_away_is_less_certain(noisy: Reals) -> None:
    law = Law(sizes(FITTED), noisy)
    near, far = law.predict((2, 32, 100, 30_000)), law.predict((64, 1_024, 5_000, 10_000_000))
    assert far.deviation > 2 * near.deviation


def test_a_gain_is_the_difference_of_predictions(noisy: Reals) -> None:
    law = Law(sizes(FITTED), noisy)
    now, then = (2.0, 32.0, 100.0, 30_000.0), (2.0, 64.0, 100.0, 30_000.0)
    gain = law.gain(now, then)
    assert gain.auc == pytest.approx(law.predict(then).auc - law.predict(now).auc)
    assert gain.deviation < law.predict(then).deviation


def test_runs_that_are_all_alike_are_a_law_too() -> None:
    rows = np.repeat(sizes(FITTED)[:1], 5, axis=0)
    law = Law(rows, np.full(5, 0.7))
    assert law.predict(rows[0].tolist()).auc == pytest.approx(0.7, abs=1e-3)

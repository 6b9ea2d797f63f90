"""What a scene behind a balancer comes to: moves, tries, slow seconds."""

import numpy as np
import pytest

from loadtest.balance.ranks import Ranked, Users
from loadtest.balance.scenes import Line, Watched


def test_an_outcome_counts_what_callers_got() -> None:
    calls = [Ranked(0.01 * number, 0.010, number % 5, "OK", "HOST") for number in range(100)]
    calls += [Ranked(2.0 + 0.01 * number, 0.015, 0, "OK", "NONE") for number in range(100)]
    calls += [Ranked(3.0 + 0.01 * number, 0.025, 0, "OK", "REDIS") for number in range(99)]
    calls.append(Ranked(3.99, 2.0, 0, "DEADLINE_EXCEEDED"))
    watched = Watched(calls, 0, marks=[(2.0, 100)], lines=[Line(0, "a", 1), Line(1, "b", 2)])
    outcome = watched.outcome("a scene")
    assert (outcome.num_calls, outcome.failed, outcome.most_tries) == (300, {"DEADLINE_EXCEEDED": 1}, 2)
    assert outcome.p99_ms == pytest.approx(10)
    assert outcome.slow_s == 1  # the second one alone is more than twice as slow
    assert outcome.hits == pytest.approx(199 / 299)


def test_homes_are_of_some_lines() -> None:
    watched = Watched([], 0, lines=[Line(0, "a", 1), Line(1, "b", 1), Line(0, "c", 1)])
    assert watched.homes() == {0: ["a", "c"], 1: ["b"]}
    assert watched.homes(0, 2) == {0: ["a"], 1: ["b"]}


def test_users_have_histories_that_a_log_accepts() -> None:
    users = Users(3, np.arange(1, 50), 20, 5, 1_700_000_000_000)
    for life in users.lives:
        times = life.events()["time_ms"]
        assert len(times) == 20 and (np.diff(times) >= 0).all() and times[-1] < users.now_ms

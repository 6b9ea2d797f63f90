"""Fetch or recompute: the cheaper, unless only the other should meet the deadline; and its line in a trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.kvcache.cost import Estimate
from mfalcon.kvcache.decision import Choice, Reason, decide

FAST, SLOW = Estimate(3.1e-3, 4e-3), Estimate(61.2e-3, 75e-3)
RISKY, SAFE = Estimate(10e-3, 40e-3), Estimate(12e-3, 15e-3)

ESTIMATES = st.tuples(st.floats(0, 10), st.floats(0, 10)).map(lambda pair: Estimate(min(pair), max(pair)))


@pytest.mark.parametrize(
    ("fetch", "recompute", "time_left", "choice", "reason"),
    [
        (FAST, SLOW, None, "fetch", "cheaper"),
        (SLOW, FAST, None, "recompute", "cheaper"),
        (FAST, FAST, None, "recompute", "cheaper"),
        (None, SLOW, None, "recompute", "only way"),
        (None, SLOW, 1e-3, "recompute", "only way"),
        (RISKY, SAFE, None, "fetch", "cheaper"),
        (RISKY, SAFE, 50e-3, "fetch", "cheaper"),
        (RISKY, SAFE, 20e-3, "recompute", "meets deadline"),
        (RISKY, SAFE, 14e-3, "fetch", "cheaper"),
        (SAFE, RISKY, 20e-3, "fetch", "meets deadline"),
        (SAFE, RISKY, -1.0, "recompute", "cheaper"),
    ],
)
def test_the_cheaper_that_meets_the_deadline(
    fetch: Estimate | None, recompute: Estimate, time_left: float | None, choice: Choice, reason: Reason
) -> None:
    decision = decide(fetch, recompute, time_left)
    assert (decision.choice, decision.reason) == (choice, reason)
    assert (decision.fetch, decision.recompute) == (fetch, recompute)


@given(ESTIMATES, ESTIMATES, st.none() | st.floats(0, 10))
def test_no_other_choice_would_have_been_better(fetch: Estimate, recompute: Estimate, time_left: float | None) -> None:
    decision = decide(fetch, recompute, time_left)
    chosen, rejected = (fetch, recompute) if decision.choice == "fetch" else (recompute, fetch)
    if decision.reason == "meets deadline":
        assert time_left is not None
        assert chosen.seconds >= rejected.seconds
        assert chosen.upper <= time_left < rejected.upper
    else:
        assert chosen.seconds <= rejected.seconds
        assert time_left is None or chosen.upper <= time_left or rejected.upper > time_left


def test_without_a_fetch_the_caller_says_why() -> None:
    assert decide(None, SLOW, None, without_fetch="redis unavailable").reason == "redis unavailable"


@pytest.mark.parametrize(
    ("fetch", "recompute", "time_left", "line"),
    [
        (FAST, SLOW, None, "fetch 3.1 ms (<= 4.0) < recompute 61.2 ms (<= 75.0): cheaper"),
        (SLOW, FAST, None, "recompute 3.1 ms (<= 4.0) < fetch 61.2 ms (<= 75.0): cheaper"),
        (FAST, FAST, None, "recompute 3.1 ms (<= 4.0) = fetch 3.1 ms (<= 4.0): cheaper"),
        (RISKY, SAFE, 20e-3, "recompute 12.0 ms (<= 15.0) > fetch 10.0 ms (<= 40.0): meets deadline"),
        (None, SLOW, None, "recompute 61.2 ms (<= 75.0): only way"),
    ],
)
def test_explains_itself_in_one_line(
    fetch: Estimate | None, recompute: Estimate, time_left: float | None, line: str
) -> None:
    assert decide(fetch, recompute, time_left).explain() == line

"""The costs put together: the chosen way is the cheaper one where it matters, and the crossover is where it turns."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.bench.state import predicted_crossover
from mfalcon.kvcache.cost import EncodeCost, Estimate, Pace, TransferCost
from mfalcon.kvcache.planner import Predictor, Situation

COLD = Situation(history_tokens=1000, host_tokens=0, redis_tokens=900, fetch_bytes=900 * 3072)

ENCODE = (2e-3, 3e-5, 1e-6, 7e-8)
DECODE_SECONDS_PER_BYTE = 1 / 3e9
FETCH_LATENCY = 0.3e-3
NOISE = 0.15
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
BANDWIDTHS = (10e6, 30e6, 100e6, 300e6, 1e9, 3e9, 10e9)
BYTES_PER_TOKEN = (768, 3_072, 6_144, 32_768)


def encode_seconds(new: int) -> float:
    call, token, _, pair = ENCODE
    return call + token * new + pair * new * new / 2


def trained(bandwidth: float, generator: np.random.Generator) -> Predictor:
    """After a warm-up of prefills and 24 observations of each kind, of sizes that spread over the grid."""
    predictor = Predictor()

    def noisy(seconds: float) -> float:
        return float(seconds * generator.lognormal(0, NOISE))

    lengths = [64, 256, 1024, *(int(64 * 2 ** generator.uniform(0, 6)) for _ in range(24))]
    for new in lengths:
        predictor.encode.observe(0, new, noisy(encode_seconds(new)))
    for _ in range(24):
        num_bytes = int(50e3 * 10 ** generator.uniform(0, 3.3))
        predictor.fetch.observe(num_bytes, noisy(FETCH_LATENCY + num_bytes / bandwidth))
        predictor.decode.observe(num_bytes, noisy(50e-6 + num_bytes * DECODE_SECONDS_PER_BYTE))
    return predictor


@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_way_is_hardly_ever_much_dearer_than_the_other(seed: int) -> None:
    generator = np.random.default_rng(seed)
    good, choices = [], []
    for bandwidth in BANDWIDTHS:
        predictor = trained(bandwidth, generator)
        for n, bytes_per_token in itertools.product(LENGTHS, BYTES_PER_TOKEN):
            num_bytes = n * bytes_per_token
            decision = predictor.decide(Situation(n, 0, n, num_bytes))
            fetch = FETCH_LATENCY + num_bytes / bandwidth + 50e-6 + num_bytes * DECODE_SECONDS_PER_BYTE
            cost = {"fetch": fetch, "recompute": encode_seconds(n)}
            good.append(cost[decision.choice] <= 1.15 * min(cost.values()))
            choices.append(decision.choice)
    assert np.mean(good) >= 0.95
    assert 0.2 < np.mean([choice == "fetch" for choice in choices]) < 0.8  # or the law would be about nothing


def fixed() -> Predictor:
    """Costs that are easy to add up: 100 ms and 1 ms a token; 1 ms and 1 GB/s; decoding 2 GB/s."""
    return Predictor(
        encode=EncodeCost(0.1, 1e-3, 1e-12, 1e-12),
        fetch=TransferCost(1e-3, 1e9),
        decode=TransferCost(1e-12, 2e9),
    )


def seconds(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.seconds


def test_bytes_travel_while_the_request_waits_for_the_device() -> None:
    at = Situation(1000, host_tokens=200, redis_tokens=900, fetch_bytes=100_000_000, wait=Estimate(0.03, 0.03))
    decision = fixed().decide(at)
    assert seconds(decision.fetch) == pytest.approx(max(0.030, 0.101) + 0.050 + 0.1 + 100e-3)
    assert seconds(decision.recompute) == pytest.approx(0.030 + 0.1 + 800e-3)
    waiting = fixed().decide(replace(at, wait=Estimate(0.200, 0.200)))
    assert seconds(waiting.fetch) == pytest.approx(max(0.200, 0.101) + 0.050 + 0.1 + 100e-3)
    assert decision.choice == waiting.choice == "fetch"


def test_a_whole_state_in_redis_leaves_nothing_to_encode() -> None:
    decision = fixed().decide(replace(COLD, redis_tokens=1000, fetch_bytes=10_000_000))
    assert seconds(decision.fetch) == pytest.approx(0.011 + 0.005)


@pytest.mark.parametrize("redis_tokens", [0, 299, 300])
def test_what_the_host_has_already_is_not_fetched(redis_tokens: int) -> None:
    decision = fixed().decide(Situation(1000, 300, redis_tokens, 0))
    assert (decision.choice, decision.reason, decision.fetch) == ("recompute", "only way", None)


def test_a_silent_redis_is_named() -> None:
    decision = fixed().decide(replace(COLD, redis_tokens=None))
    assert (decision.choice, decision.reason, decision.fetch) == ("recompute", "redis unavailable", None)
    assert decision.explain() == "recompute 1100.0 ms (<= 2200.0): redis unavailable"


def test_an_uncertain_fetch_yields_when_time_is_short() -> None:
    """Fetches of 2 ms, one in eight 40 ms, are the cheaper way and the riskier one."""
    predictor = Predictor()
    for i in range(400):
        predictor.encode.observe(0, 1000, 15e-3)
        predictor.fetch.observe(3_000_000, 40e-3 if i % 8 == 0 else 2e-3)
        predictor.decode.observe(3_000_000, 1e-3)
    at = Situation(1000, 0, 1000, 3_000_000)
    assert predictor.decide(at).choice == "fetch"
    decision = predictor.decide(replace(at, time_left=20e-3))
    assert (decision.choice, decision.reason) == ("recompute", "meets deadline")


@given(
    st.integers(0, 4096),
    st.integers(0, 4096),
    st.integers(0, 4096),
    st.integers(0, 1 << 30),
    st.integers(0, 100),
)
def test_a_longer_wait_makes_neither_way_quicker(n: int, host: int, redis: int, num_bytes: int, jobs: int) -> None:
    at = Situation(n, min(host, n), min(redis, n), num_bytes)
    idle, busy = Predictor().decide(at), Predictor().decide(replace(at, wait=Pace().predict(5e-3 * jobs, jobs)))
    assert 0 <= idle.recompute.seconds <= busy.recompute.seconds <= busy.recompute.upper
    if idle.fetch is not None:
        assert 0 <= idle.fetch.seconds <= seconds(busy.fetch)


@given(st.integers(1, 4096), st.integers(0, 1 << 30))
def test_speculation_agrees_with_the_decision_of_a_cold_request(n: int, num_bytes: int) -> None:
    predictor = Predictor()
    decision = predictor.decide(Situation(n, 0, n, num_bytes))
    assert predictor.expected_fetch_wins(n, num_bytes) == (decision.choice == "fetch")


@given(
    latency=st.floats(1e-4, 0.1),
    bandwidth=st.floats(1e6, 1e10),
    call=st.floats(1e-5, 0.1),
    bytes_per_token=st.integers(100, 50_000),
    limit=st.integers(1, 3_000),
)
def test_the_crossover_is_where_fetching_begins_to_win(
    latency: float, bandwidth: float, call: float, bytes_per_token: int, limit: int
) -> None:
    predictor = Predictor(encode=EncodeCost(call_seconds=call), fetch=TransferCost(latency, bandwidth))
    wins = [predictor.expected_fetch_wins(n, n * bytes_per_token) for n in range(limit + 1)]
    crossover = predicted_crossover(predictor, bytes_per_token, limit)
    if not wins[limit]:
        assert crossover is None
        return
    assert crossover is not None and wins[crossover]
    if sum(ours != theirs for ours, theirs in itertools.pairwise(wins[1:])) <= 1:  # no island of short histories
        assert crossover == 1 + wins[1:].index(True)
    else:
        assert crossover == 1 or not wins[crossover - 1]


def test_known_crossovers() -> None:
    """100.6 ms and 1 us a byte against 1 ms a token: from 1,000 bytes a token on it never pays."""
    predictor = Predictor(
        encode=EncodeCost(1e-9, 1e-3, 1e-12, 1e-12),
        fetch=TransferCost(100.6e-3, 1e6),
        decode=TransferCost(1e-9, 1e15),
    )
    assert predicted_crossover(predictor, 0) == 101
    assert predicted_crossover(predictor, 500) == 202  # 100.6 / (1 - 0.5), and the next
    assert predicted_crossover(predictor, 500, limit=201) is None
    assert predicted_crossover(predictor, 1_000) is None

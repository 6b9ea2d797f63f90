"""rab^{p,t}: integer thresholds are the logarithm, the vector is a row of the matrix, gradients are counts."""

from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.bias import RelativeBias, time_thresholds

INT64_MAX = 2**63 - 1
GRIDS = ((64, 0.301, 1000), (128, 0.301, 1), (20, 0.7, 1000), (5, 2.5, 60_000), (1, 0.05, 1))


def bucket_by_logarithm(dt_ms: int, num_buckets: int, width: float, unit_ms: int) -> int:
    """clamp(floor(ln(max(1, dt)) / width), 0, num_buckets), to 50 digits."""
    with localcontext() as context:
        context.prec = 50
        dt = max(Decimal(1), Decimal(dt_ms) / unit_ms)
        return min(int(dt.ln() / Decimal(width)), num_buckets)


def bucket(dt_ms: int, thresholds: torch.Tensor) -> int:
    return int(torch.bucketize(torch.tensor(dt_ms), thresholds, right=True))


@pytest.mark.parametrize("grid", GRIDS)
def test_thresholds_are_the_logarithm_at_every_edge(grid: tuple[int, float, int]) -> None:
    thresholds = time_thresholds(*grid)
    assert thresholds.dtype == torch.int64
    assert len(thresholds) == grid[0]
    # exp(x) in double is off by x * 2^-53 of itself: less than 1 ms up to 2^40 ms, 35 years.
    edges = [edge for edge in thresholds.tolist() if edge < 2**40]
    for edge in edges:
        for dt in (edge - 1, edge, edge + 1):
            assert bucket(dt, thresholds) == bucket_by_logarithm(dt, *grid), dt


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("dt", [-INT64_MAX, -1, 0, 1, 999, 1000, 1001, 253_402_300_799_999, INT64_MAX - 1])
def test_zero_negative_and_huge_differences(grid: tuple[int, float, int], dt: int) -> None:
    assert bucket(dt, time_thresholds(*grid)) == bucket_by_logarithm(dt, *grid)


@given(st.sampled_from(GRIDS), st.integers(-(10**14), 10**14))
def test_thresholds_are_the_logarithm_anywhere(grid: tuple[int, float, int], dt: int) -> None:
    assert bucket(dt, time_thresholds(*grid)) == bucket_by_logarithm(dt, *grid)


def test_more_buckets_than_time_has() -> None:
    """A generous configuration is legal: the buckets that no difference can reach stay empty."""
    thresholds = time_thresholds(2048, 0.5, 1000)
    assert bucket(10**14, thresholds) == bucket_by_logarithm(10**14, 2048, 0.5, 1000)


def random_bias(num_heads: int, num_positions: int, num_buckets: int) -> RelativeBias:
    generator = torch.Generator().manual_seed(num_positions)
    return RelativeBias(
        position=torch.randn(num_heads, num_positions, generator=generator, dtype=torch.float64),
        time=torch.randn(num_heads, num_buckets + 1, generator=generator, dtype=torch.float64),
        thresholds=time_thresholds(num_buckets, 0.301, 1000),
    )


@pytest.mark.parametrize("num_keys", [0, 1, 63, 77])
def test_vector_is_a_row_of_the_matrix(num_keys: int) -> None:
    bias = random_bias(3, 40, 30)
    generator = torch.Generator().manual_seed(num_keys)
    times = torch.randint(0, 10**9, (num_keys,), generator=generator).sort().values
    positions = torch.arange(num_keys)
    q_time = 10**9 + 12_345
    row = bias.matrix(torch.tensor([num_keys]), positions, torch.tensor([q_time]), times)
    assert row.shape == (3, 1, num_keys)
    assert torch.equal(bias.vector(num_keys, positions, q_time, times), row[:, 0])


def test_matrix_by_definition() -> None:
    bias = random_bias(2, 5, 30)
    times = [10, 10, 5_000, 5_001, 10**8, 10**12, 10**12]
    n = len(times)
    matrix = bias.matrix(torch.arange(n), torch.arange(n), torch.tensor(times), torch.tensor(times))
    for i in range(n):
        for j in range(i + 1):
            b = bucket_by_logarithm(times[i] - times[j], 30, 0.301, 1000)
            expected = bias.position[:, min(i - j, 4)] + bias.time[:, b]
            assert torch.equal(matrix[:, i, j], expected)
    assert torch.equal(matrix[:, 0, 0], bias.own())


def test_matrix_broadcasts_over_batches() -> None:
    bias = random_bias(2, 9, 30)
    times = torch.randint(0, 10**9, (4, 11), generator=torch.Generator().manual_seed(1)).sort(-1).values
    positions = torch.arange(11)
    together = bias.matrix(positions, positions, times, times)
    assert together.shape == (4, 2, 11, 11)
    for row in range(4):
        assert torch.equal(together[row], bias.matrix(positions, positions, times[row], times[row]))


def test_gradient_counts_the_uses_of_each_weight() -> None:
    bias = random_bias(2, 6, 30)
    bias.position.requires_grad_()
    bias.time.requires_grad_()
    n = 9
    positions, times = torch.arange(n), torch.arange(n) * 7_000
    weight = torch.randn(2, n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (bias.matrix(positions, positions, times, times) * weight).sum().backward()
    by_position, by_time = torch.zeros_like(bias.position), torch.zeros_like(bias.time)
    for i in range(n):
        for j in range(n):
            by_position[:, min(max(i - j, 0), 5)] += weight[:, i, j]
            by_time[:, bucket_by_logarithm((i - j) * 7_000, 30, 0.301, 1000)] += weight[:, i, j]
    assert bias.position.grad is not None and bias.time.grad is not None
    assert torch.allclose(bias.position.grad, by_position, rtol=0, atol=1e-12)
    assert torch.allclose(bias.time.grad, by_time, rtol=0, atol=1e-12)

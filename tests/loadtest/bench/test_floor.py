"""The counted floor against numbers worked out by hand and against the published table of shapes S and B."""

import pytest

from loadtest.bench.floor import append_work, prefill_work, score_work, sum_work
from loadtest.bench.shapes import SHAPES

S, B, TINY = SHAPES["S"], SHAPES["B"], SHAPES["tiny"]
SILUS = 22e9
FLOAT32, BFLOAT16 = 474e9, 874e9
"""Peaks of the two AVX-512 cores on which the table was measured."""


def test_score_work_by_hand() -> None:
    work = score_work(S, 1024, 512)
    assert work.flops == 3 * 512 * (10 * 65_536 + 4 * 256 * 1025) == 2_618_818_560
    assert work.silus == 3 * 512 * (4 * 256 + 4 * 1025)
    assert score_work(TINY, 0, 1).flops == 2 * (10 * 1024 + 4 * 32)


@pytest.mark.parametrize(
    ("shape", "n", "m", "peak", "measured_ms", "percent"),
    [
        (S, 1024, 512, BFLOAT16, 3.73, 90),
        (S, 1024, 512, BFLOAT16, 7.13, 47),
        (S, 4096, 2048, BFLOAT16, 43.2, 91),
        (B, 1024, 512, BFLOAT16, 29.4, 82),
        (B, 1024, 512, BFLOAT16, 35.4, 68),
        (S, 1024, 512, FLOAT32, 6.89, 87),
        (S, 4096, 2048, FLOAT32, 78.6, 88),
        (B, 1024, 512, FLOAT32, 52.8, 83),
    ],
)
def test_score_floor_against_the_table(
    shape: object, n: int, m: int, peak: float, measured_ms: float, percent: int
) -> None:
    """The table rounds times and percentages to two digits, and its peaks to three: together 3%."""
    assert isinstance(shape, type(S))
    floor_ms = score_work(shape, n, m).seconds(peak, SILUS) * 1e3
    assert floor_ms / measured_ms == pytest.approx(percent / 100, rel=0.03)


def test_prefill_work_by_hand() -> None:
    """Two full layers, and keys and values in the last: 3 tokens see 1 + 2 + 3 keys."""
    work = prefill_work(S, 3)
    assert work.flops == 2 * (3 * 10 * 65_536 + 4 * 256 * 6) + 3 * 4 * 65_536
    assert work.silus == 2 * (3 * 4 * 256 + 4 * 6) + 3 * 2 * 256


@pytest.mark.parametrize(("n", "k"), [(0, 1), (1, 1), (63, 77), (1024, 1), (1024, 100)])
def test_an_append_is_what_a_longer_prefill_has_more(n: int, k: int) -> None:
    assert sum_work(prefill_work(B, n), append_work(B, n, k)) == prefill_work(B, n + k)


def test_the_law_of_reuse() -> None:
    """FLOPs of one forward per candidate over those of cached scoring, at S: about n(5d+n)/(5d+2n) for many layers."""
    n, m, d = 1024, 512, 256
    ratio = m * sum_work(prefill_work(S, n), score_work(S, n, 1)).flops / score_work(S, n, m).flops
    law = n * (5 * d + n) / (5 * d + 2 * n)
    assert ratio == pytest.approx(526, abs=1)
    # Two of three layers in full and 40% of the linears of the last.
    assert 2 / 3 < ratio / law < 1

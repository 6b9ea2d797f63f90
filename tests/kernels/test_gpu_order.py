"""In which order programs start: what is in flight together, and how well the last of them end together.

A device starts programs in the order of their number and the next as soon as one ends; 132 run at a time here.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("triton", reason="no triton for this platform")

from kernels.gpu import linear, norms, tile
from kernels.paged import batch

AT_A_TIME, HEADS = 132, 4


def test_rows_of_a_projection_are_read_once() -> None:
    """2,048 columns are 16 blocks: row blocks first, 132 programs held 132 of them and came back to each 16 times, when
    a cache smaller than all rows has lost it. Columns first, they hold 10, and each is in flight once.
    """
    num_columns, num_rows = linear.grid(65_536, 2048, 128, 128)
    assert (num_columns, num_rows) == (16, 512)
    order = [program // num_columns for program in range(num_columns * num_rows)]  # row blocks, the first axis first
    for start in range(0, len(order) - AT_A_TIME, 7):
        together = order[start : start + AT_A_TIME]
        assert len(set(together)) + num_columns <= 26
    assert order == sorted(order)


def balance(work: Sequence[Fraction]) -> Fraction:
    """Share of the time that multiprocessors have work, where the next program starts as soon as one ends."""
    ends = [Fraction(0)] * AT_A_TIME
    for each in work:
        heapq.heappush(ends, heapq.heappop(ends) + each)
    return sum(work, Fraction(0)) / (AT_A_TIME * max(ends))


def keys_in_order(num_rows: Sequence[int], prefix_lens: Sequence[int], splits: int = 1) -> list[Fraction]:
    """What each program of a prefill goes over, in the order in which they start."""
    users = batch(num_rows, prefix_lens, [[0]] * len(num_rows), tile_rows=128)
    programs = np.arange(len(users.tiles) * HEADS * splits)
    order = list(zip(*(x.tolist() for x in tile.tile_by_tile.fn(programs, splits, HEADS)), strict=True))
    assert len(set(order)) == len(programs)
    assert {head for _, head, _ in order} == set(range(HEADS)) and {split for *_, split in order} == set(range(splits))
    found = []
    for index, *_ in order:
        user, first = users.tiles[index].tolist()
        rows = num_rows[user]
        found.append(Fraction(prefix_lens[user] - rows + min(first + 128, rows), splits))
    return found


def test_a_prefill_starts_its_longest_tiles_first() -> None:
    """As tiles stand in the prefix, head by head, the last to start are the longest."""
    n = 6_673
    found = keys_in_order([n], [n])
    upwards = [Fraction(min(first + 128, n)) for _ in range(HEADS) for first in range(0, n, 128)]
    assert sorted(found) == sorted(upwards)
    assert balance(upwards) < Fraction(60, 100)
    assert balance(found) > Fraction(83, 100)


@pytest.mark.parametrize(
    ("num_rows", "prefix_lens", "splits"),
    [((500, 3000, 900), (500, 3000, 900), 1), ((300, 16), (300, 9000), 3), ((0, 700), (0, 700), 1)],
)
def test_nothing_starts_after_a_shorter_one(
    num_rows: tuple[int, ...], prefix_lens: tuple[int, ...], splits: int
) -> None:
    """Of any number of users, whatever is new of theirs, and in any number of splits."""
    found = keys_in_order(num_rows, prefix_lens, splits)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("num_rows", [256, 512, 1024])
def test_parts_of_few_rows_are_added_on_all_multiprocessors(num_rows: int) -> None:
    """256 rows in 16 parts were 32 programs, one part after the other."""
    assert -(-num_rows // norms.gate_rows(num_rows, 512)) >= AT_A_TIME

"""Likeness is a cosine: of an item with itself 1, of what shares nothing 0, and nobody is like the unknown."""

import numpy as np
import pytest

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.rerank.likeness import SIDE_SHARE, Centred, Likeness, Vectors
from mfalcon.types import Floats, Ids

GENRES = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.uint8)
YEARS = np.array([1, 1, 2, 0])
LEARNED = np.array([[9, 9], [3, 1], [1, 1], [-1, 1], [1, -3]], dtype=np.float32)


def centred(table: Floats) -> Vectors:
    return Centred(table.__getitem__, len(table))


def items(*names: str) -> ItemTable:
    side = {name: column for name, column in {"genres": GENRES, "year": YEARS}.items() if name in names}
    return ItemTable(np.arange(10, 14), ("",) * 4, side)


def matrix(likeness: Likeness, rows: Ids) -> Floats:
    similar_to = likeness.among(rows)
    return np.stack([similar_to(position) for position in range(len(rows))])


ROWS = np.array([1, 2, 3, 4, UNKNOWN_ROW, 2])


@pytest.mark.parametrize("names", [(), ("genres",), ("year",), ("genres", "year")])
@pytest.mark.parametrize("learned", [None, centred(LEARNED)])
def test_it_is_a_cosine(names: tuple[str, ...], learned: Vectors | None) -> None:
    like = matrix(Likeness(items(*names), learned), ROWS)
    assert np.allclose(like, like.T, atol=1e-6)
    assert np.abs(like).max() <= 1 + 1e-6
    itself = np.diagonal(like)
    assert np.all((np.abs(itself - 1) < 1e-6) | (itself == 0))
    assert not like[4].any()
    assert np.linalg.eigvalsh(like.astype(np.float64)).min() > -1e-6


def test_what_shares_all_tags_and_nothing_else() -> None:
    like = matrix(Likeness(items("genres")), np.array([1, 2, 3, 4]))
    assert like == pytest.approx(np.array([[1, 0.5**0.5, 0, 0], [0.5**0.5, 1, 0, 0], [0, 0, 1, 0], [0] * 4]), abs=1e-6)


def test_tags_go_before_categories() -> None:
    rows = np.array([1, 2, 3, 4])
    assert np.array_equal(matrix(Likeness(items("genres", "year")), rows), matrix(Likeness(items("genres")), rows))


def test_features_and_vectors_have_their_shares() -> None:
    learned = np.array([[0, 0], [1, 0], [0, 1], [1, 0], [0, 0]], dtype=np.float32)
    like = matrix(Likeness(items("genres"), learned.__getitem__), np.array([1, 2, 3, 4]))
    assert like[0, 1] == pytest.approx(SIDE_SHARE * 0.5**0.5, abs=1e-6)
    assert like[0, 2] == pytest.approx(1 - SIDE_SHARE, abs=1e-6)
    assert not like[3].any()


def test_what_is_missing_is_no_likeness() -> None:
    """Two items without a year do not share it; an item of which only the vector is known is judged by that."""
    like = matrix(Likeness(items("year"), centred(LEARNED)), np.array([4, 4, 3]))
    assert like[0] == pytest.approx(np.array([1, 1, like[2, 0]]), abs=1e-6)
    assert not matrix(Likeness(items("year")), np.array([4, 4])).any()


def test_centred_vectors_are_told_apart_by_what_is_theirs() -> None:
    rows = np.arange(1, len(LEARNED))
    vectors = centred(LEARNED + 1e3)(rows)
    assert vectors == pytest.approx(LEARNED[rows] - LEARNED[rows].mean(axis=0), abs=1e-3)
    assert not centred(np.ones((3, 2), np.float32))(np.array([1, 2])).any()


def test_vectors_are_read_some_at_a_time_and_never_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of all of them may be more than there is memory for."""
    monkeypatch.setattr("mfalcon.rerank.likeness._ROWS_AT_ONCE", 2)
    table, asked = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), list[int]()

    def vectors(rows: Ids) -> Floats:
        asked.append(len(rows))
        return table[rows]

    learned = Centred(vectors, len(table))
    assert asked == [2, 2, 1]
    assert learned(np.array([3])) == pytest.approx(table[3:4] - table[1:].mean(axis=0), abs=1e-6)
    assert asked[-1] == 1


def test_a_model_without_items() -> None:
    nothing = ItemTable(
        np.empty(0, np.int64), (), {"genres": np.empty((0, 3), np.uint8), "year": np.empty(0, np.int64)}
    )
    assert not matrix(Likeness(nothing, centred(np.ones((1, 2), np.float32))), np.array([0, 0])).any()

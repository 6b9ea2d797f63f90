"""Likeness is a cosine: of an item with itself 1, of what shares nothing 0, and nobody is like the unknown."""

import numpy as np
import pytest

from mfalcon.models.items import UNKNOWN_ROW, ItemTable
from mfalcon.rerank.likeness import SIDE_SHARE, Likeness, centred, of_length_1
from mfalcon.types import Floats, Ids

GENRES = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=np.uint8)
YEARS = np.array([1, 1, 2, 0])
LEARNED = np.array([[9, 9], [3, 1], [1, 1], [-1, 1], [1, -3]], dtype=np.float32)


def items(*names: str) -> ItemTable:
    side = {name: column for name, column in {"genres": GENRES, "year": YEARS}.items() if name in names}
    return ItemTable(np.arange(10, 14), ("",) * 4, side)


def matrix(likeness: Likeness, rows: Ids) -> Floats:
    similar_to = likeness.among(rows)
    return np.stack([similar_to(position) for position in range(len(rows))])


ROWS = np.array([1, 2, 3, 4, UNKNOWN_ROW, 2])


@pytest.mark.parametrize("names", [(), ("genres",), ("year",), ("genres", "year")])
@pytest.mark.parametrize("learned", [None, centred(LEARNED)])
def test_it_is_a_cosine(names: tuple[str, ...], learned: "np.typing.NDArray[np.float16] | None") -> None:
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
    learned = of_length_1(np.array([[0, 0], [1, 0], [0, 1], [1, 0], [0, 0]])).astype(np.float16)
    like = matrix(Likeness(items("genres"), learned), np.array([1, 2, 3, 4]))
    assert like[0, 1] == pytest.approx(SIDE_SHARE * 0.5**0.5, abs=1e-6)
    assert like[0, 2] == pytest.approx(1 - SIDE_SHARE, abs=1e-6)
    assert not like[3].any()


def test_what_is_missing_is_no_likeness() -> None:
    """Two items without a year do not share it; an item of which only the vector is known is judged by that."""
    like = matrix(Likeness(items("year"), centred(LEARNED)), np.array([4, 4, 3]))
    assert like[0] == pytest.approx(np.array([1, 1, like[2, 0]]), abs=1e-6)
    assert not matrix(Likeness(items("year")), np.array([4, 4])).any()


def test_centred_vectors_are_told_apart_by_what_is_theirs() -> None:
    vectors = centred(LEARNED + 1e3)
    assert not vectors[UNKNOWN_ROW].any()
    assert np.linalg.norm(vectors[1:].astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
    assert vectors == pytest.approx(centred(LEARNED), abs=2e-3)
    assert not centred(np.ones((3, 2), np.float32)).any()
    assert centred(np.ones((1, 2), np.float32)).shape == (1, 2)


def test_a_model_without_items() -> None:
    nothing = ItemTable(
        np.empty(0, np.int64), (), {"genres": np.empty((0, 3), np.uint8), "year": np.empty(0, np.int64)}
    )
    assert not matrix(Likeness(nothing, centred(np.ones((1, 2), np.float32))), np.array([0, 0])).any()

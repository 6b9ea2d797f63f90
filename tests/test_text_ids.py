"""Ids that are text against the hash itself, and what is no id."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mfalcon.errors import InvalidInput
from mfalcon.item_ids import item_id, item_ids
from mfalcon.text_ids import HashTexts, TextIds, compiled_hash


@pytest.fixture(params=["compiled", "without"])
def hash_texts(request: pytest.FixtureRequest) -> HashTexts | None:
    if request.param == "without":
        return None
    if (found := compiled_hash()) is None:
        pytest.skip("not compiled")
    return found


def test_numbers_are_those_of_the_hash_however_often_asked(hash_texts: HashTexts | None) -> None:
    ids = TextIds(hash_texts, most=10)
    names = [f"sku-{number % 37}" for number in range(200)] + ["7", "007", "-1", "9223372036854775808", "é" * 128]
    for start in range(0, 200, 7):
        texts = names[start:] + names[:start]
        assert ids.all(texts, "candidate_ids").tolist() == item_ids(texts).tolist()
    assert ids.one("sku-3") == item_id("sku-3")
    assert ids.all([], "candidate_ids").dtype == np.int64


@pytest.mark.parametrize("text", ["", "a\0b", "\n", "\x7f", "\x85", "x" * 257, "é" * 129, "x" * 2**22, "\ud800"])
def test_what_is_no_id_is_named(text: str, hash_texts: HashTexts | None) -> None:
    ids = TextIds(hash_texts)
    for _ in range(2):  # it is not remembered
        with pytest.raises(InvalidInput, match=r"^candidate_ids\[2\]: .* must be 1 to 256 bytes of UTF-8") as error:
            ids.all(["a", "b", text, ""], "candidate_ids")
        assert len(str(error.value)) < 250
        str(error.value).encode()


def test_threads_may_ask_at_once(hash_texts: HashTexts | None) -> None:
    ids, random = TextIds(hash_texts, most=50), np.random.default_rng(0)
    asked = [[f"sku-{number}" for number in random.integers(0, 300, 77)] for _ in range(200)]
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda texts: ids.all(texts, "candidate_ids").tolist(), asked))
    assert told == [item_ids(texts).tolist() for texts in asked]


def test_a_flood_of_new_ids_does_not_grow() -> None:
    ids = TextIds(most=100)
    for number in range(1_000):
        assert ids.one(f"a{number}") == item_id(f"a{number}")
        assert ids.num_remembered <= 201
    assert ids.num_remembered > 100

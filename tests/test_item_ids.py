"""Ids that are text: numbers stay numbers, hashes are the same for ever and everywhere."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mfalcon_client
from mfalcon.item_ids import item_id, item_ids


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_number_is_itself(number: int) -> None:
    assert item_id(str(number)) == number


@pytest.mark.parametrize(
    "text", ["007", "+7", "-0", "7.0", " 7", "", "\u0667", "9223372036854775808", "-9223372036854775809"]
)
def test_what_only_looks_like_a_number_is_hashed(text: str) -> None:
    expected = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert item_id(text).to_bytes(8, "little", signed=True) == expected


@given(st.text(max_size=30) | st.integers(-(2**64), 2**64).map(str))
def test_the_client_says_the_same(text: str) -> None:
    assert mfalcon_client.item_id(text) == item_id(text)
    assert mfalcon_client.item_ids([text, text]).tolist() == item_ids([text, text]).tolist()


def test_the_hash_stays_what_it_is() -> None:
    texts = ["sku-1", "d1b0b6ea-8d8a-4a0e-9a6b-6a7d3ef1c0aa", "Ítem"]
    assert item_ids(texts).tolist() == [-1840803191160002099, -1018896197359142928, 4298329277733217402]
    assert item_ids([]).shape == (0,)

"""Ids that are text, hashed in C++, against their definition in Python; and what is no id."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import build_library, text_ids
from kernels.cpu.text_ids import CompiledTextIds
from mfalcon.item_ids import checked_item_id, item_ids

SANITIZE = os.environ.get("MFALCON_SANITIZE", "")
EDGES = ["0", "-0", "-", "7", "007", "+7", "-12", " 7", "9" * 19, "9" * 20, "-" + "9" * 18, "\u0667", "a b", "\xa0"]
EDGES += [str(sign * 2**63 + near) for sign in (-1, 1) for near in (-2, -1, 0, 1)]
EDGES += ["x" * size for size in (1, 19, 20, 21, 127, 128, 129, 255, 256)] + ["\xe9" * 128, "\U0001f600" * 64]


@pytest.fixture(scope="module")
def compiled() -> CompiledTextIds:
    compiler = build_library.find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    build_library.compile_policy(compiler, build_library.TEXT_IDS, SANITIZE)
    found = text_ids.load(SANITIZE)
    assert found is not None
    return found


def is_id(text: str) -> bool:
    try:
        checked_item_id(text)
    except ValueError:
        return False
    return True


def test_edges(compiled: CompiledTextIds) -> None:
    numbers = compiled(EDGES)
    assert numbers is not None
    assert numbers.tolist() == item_ids(EDGES).tolist()
    none = compiled([])
    assert none is not None and none.shape == (0,)


@given(st.lists(st.text(max_size=8) | st.text(st.characters(max_codepoint=0x2FF), max_size=160)))
def test_it_says_what_the_definition_says(compiled: CompiledTextIds, texts: list[str]) -> None:
    numbers = compiled(texts)
    assert (numbers is not None) == all(map(is_id, texts))
    assert numbers is None or numbers.tolist() == item_ids(texts).tolist()


@pytest.mark.parametrize("text", ["", "\0", "a\0b", "\x1f", "\x7f", "\x80", "\x9f", "x" * 257, "\xe9" * 129, "\ud800"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_no_id_is_refused(compiled: CompiledTextIds, text: str, at: int) -> None:
    texts = ["a", "b"]
    texts.insert(at, text)
    assert compiled(texts) is None

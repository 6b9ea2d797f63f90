"""The names of users in logs: stable under one key, telling nothing without it."""

from hypothesis import given
from hypothesis import strategies as st

from mfalcon.pseudonym import TAG_BYTES, Pseudonyms

IDS = st.text(st.characters(), min_size=1, max_size=300)  # lone surrogates too


@given(IDS, IDS)
def test_a_name_is_the_users_alone_and_stays(ann: str, bob: str) -> None:
    names = Pseudonyms(b"key")
    assert names.tag(ann) == Pseudonyms(b"key").tag(ann)
    assert (names.tag(ann) == names.tag(bob)) == (ann == bob)
    assert len(names.tag(ann)) == 2 * TAG_BYTES and set(names.tag(ann)) <= set("0123456789abcdef")


@given(IDS)
def test_without_the_key_nobody_can_name_a_user(ann: str) -> None:
    assert len({Pseudonyms(key).tag(ann) for key in (b"one", b"other", None, None)}) == 4


def test_a_key_may_be_of_any_length_and_none_keeps_the_one_there_is() -> None:
    names, others = Pseudonyms(), Pseudonyms()
    for key in (b"k" * 16, b"k" * 17, b"k" * 4_000):
        names.use(key)
        others.use(key)
        assert names.tag("ann") == others.tag("ann")
    before = names.tag("ann")
    names.use(None)
    assert names.tag("ann") == before


def test_plain_names_are_ids() -> None:
    names = Pseudonyms()
    names.use(None, is_plain=True)
    assert names.tag("ann") == "ann"

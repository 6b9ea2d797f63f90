"""Lines reach the file whole, or are counted as lost: also where a disk takes half of one and is full for long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.line_writer import unfinished


@pytest.mark.parametrize(
    ("rest", "num_written", "left"),
    [
        (b"", 0, b""),
        (b"", 2, b"e\n"),
        (b"", 4, b""),  # all of a line, and nothing of the next
        (b"", 5, b"wo\n"),
        (b"xy\n", 0, b"xy\n"),  # the disk is full still
        (b"xy\n", 1, b"y\n"),
        (b"xy\n", 3, b""),
        (b"xy\n", 4, b"ne\n"),
    ],
)
def test_what_was_begun_of_a_line_is_still_to_come(rest: bytes, num_written: int, left: bytes) -> None:
    assert unfinished(rest, b"one\ntwo\n", num_written) == left


@given(st.lists(st.tuples(st.lists(st.sampled_from([b"a\n", b"bcd\n"]), min_size=1), st.integers(0, 20))))
def test_no_line_is_ever_joined_with_another(turns: list[tuple[list[bytes], int]]) -> None:
    rest, file = b"", b""
    for lines, most in turns:
        data = b"".join(lines)
        file += (rest + data)[:most]
        rest = unfinished(rest, data, most) if most < len(rest + data) else b""
    assert {line for line in (file + rest).splitlines()} <= {b"a", b"bcd"}

"""What the scan of a message counts is what protobuf finds in it, and it ends where a limit is passed."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mfalcon.errors import InvalidInput
from proto import ranking_pb2
from server.grpc.bounds import rank_batch_limits
from server.grpc.codec import varint
from server.grpc.wire import MAX_OTHER_FIELDS, MAX_OTHERS_OF_AN_ELEMENT, MessageLimits, Repeated
from server.limits import Limits

UNKNOWN = b"\x78\x01"
"""Field 15, which no message of ours has."""
EVENT = ranking_pb2.Event(item_id=7, actions=1, value=3.0, time_ms=4)


def limits(candidates: int = 10, events: int = 10, context: int = 10) -> MessageLimits:
    return MessageLimits(
        "Rank",
        Repeated("candidates", 2, candidates, f"at most {candidates}", is_fixed64=True),
        Repeated("recent_events", 5, events, f"at most {events}"),
        Repeated("context", 6, context, f"at most {context}"),
    )


def rank(num_candidates: int = 0, num_events: int = 0, num_context: int = 0) -> bytes:
    return ranking_pb2.RankRequest(
        user_id="ann",
        candidates=range(num_candidates),
        top_k=2**32 - 1,
        request_time_ms=-1,
        recent_events=[EVENT] * num_events,
        context={str(number): number for number in range(num_context)},
        model="m",
    ).SerializeToString()


def unpacked(num_candidates: int) -> bytes:
    return b"".join(b"\x11" + number.to_bytes(8, "little") for number in range(num_candidates))


def refusal(raw: bytes, of: MessageLimits) -> str:
    with pytest.raises(InvalidInput) as refused:
        of.check(raw)
    return str(refused.value)


@pytest.mark.parametrize("num", [0, 1, 31, 32, 63, 77, 5_000])
def test_so_many_are_welcome_and_one_more_is_not(num: int) -> None:
    of = limits(num, num, num)
    of.check(rank(num, num, num))
    of.check(rank(num_candidates=num // 2) + unpacked(num - num // 2))
    more = f"got more than {num}, must be at most {num}"
    assert refusal(rank(num_candidates=num + 1), of) == f"candidates: {more}"
    assert refusal(rank(num_candidates=num) + unpacked(1), of) == f"candidates: {more}"
    assert refusal(rank(num_events=num + 1), of) == f"recent_events: {more}"
    assert refusal(rank(num_context=num + 1), of) == f"context: {more}"


@pytest.mark.parametrize(
    "other",
    [
        UNKNOWN,
        b"\x79" + b"\1" * 8,
        b"\x7d" + b"\1" * 4,
        b"\x7a\x02ab",
        b"\x7b\x7c",
        b"\x7b" + b"\x2a\0" * 2 + b"\x7c",
        b"\x0a\x01a",
        b"\x12\0",
        b"\x12\x07" + b"\1" * 7,
        b"\xf8\x07\x01",
        b"\x28\x01",
    ],
    ids=["varint", "fixed64", "fixed32", "bytes", "group", "full-group", "user_id", "none", "odd", "far", "mistyped"],
)
def test_few_other_fields_are_welcome(other: bytes) -> None:
    of = limits(events=1)
    of.check(other * 4)
    assert refusal(other * (MAX_OTHER_FIELDS + 1), of) == (
        f"Rank: got more than {MAX_OTHER_FIELDS}, must be at most {MAX_OTHER_FIELDS} single or unknown fields"
    )


def test_the_scan_ends_where_a_limit_is_passed() -> None:
    class Watched(bytes):
        """Bytes that tell how far they were read."""

        read_to = 0

        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            self.read_to = max(self.read_to, at)
            return super().__getitem__(at)

    for item, room in ((b"\x2a\0", 10), (b"\x32\0", 10), (unpacked(1), 10), (UNKNOWN, MAX_OTHER_FIELDS)):
        raw = Watched(item * 100_000)
        refusal(raw, limits())
        assert raw.read_to < len(item) * (room + 1)


def test_whole_numbers_are_counted_by_the_bytes_that_they_take_at_most() -> None:
    of = MessageLimits("Numbers", Repeated("numbers", 1, 10, "at most 10", is_varint=True))

    def packed(num_bytes: int) -> bytes:
        return b"\x0a" + varint(num_bytes) + bytes(num_bytes)

    alone = b"\x08\0"
    for legal in (packed(100), packed(50) * 2, alone * 10, packed(1) * 10):
        of.check(legal)
    for more in (packed(101), packed(51) * 2, alone * 11, packed(1) * 11):
        assert refusal(more, of) == "numbers: got more than 10, must be at most 10"


@pytest.mark.parametrize("in_all", [False, True])
def test_messages_that_lie_in_several_others_share_bounds_where_they_say_so(in_all: bool) -> None:
    of = MessageLimits("Innermost", Repeated("texts", 1, 3, "at most 3"), in_all=in_all)
    for name in ("Inner", "Outer"):
        of = MessageLimits(name, inner={1: of})

    raw = within(within(b"\x0a\1a" * 2)) * 2
    if in_all:
        assert refusal(raw, of) == "texts: got more than 3, must be at most 3"
    else:
        of.check(raw)


def within(raw: bytes, number: int = 1) -> bytes:
    """A message as a field of another."""
    return varint(number << 3 | 2) + varint(len(raw)) + raw


@pytest.mark.parametrize("depth", [1, 2])
def test_a_message_and_all_in_it_share_few_other_fields(depth: int) -> None:
    """A field that is one alone may come any number of times, and each time as large as it likes."""
    of, raw = MessageLimits("Innermost"), UNKNOWN * 100
    for number in range(depth):
        of, raw = MessageLimits(f"Outer {number}", inner={1: of}), within(raw)
    of.check(raw * 2)
    assert refusal(raw * 3, of) == (
        f"Innermost: got more than {MAX_OTHER_FIELDS}, must be at most {MAX_OTHER_FIELDS} single or unknown fields"
    )


def test_each_element_of_a_list_brings_some_more() -> None:
    element = MessageLimits("Element", inner={2: MessageLimits("Inner")})
    of = MessageLimits("List", Repeated("elements", 1, 1_000, "at most 1000"), inner={1: element})
    of.check(within(UNKNOWN * MAX_OTHERS_OF_AN_ELEMENT) * 1_000)
    of.check(within(within(b"", 2) * MAX_OTHERS_OF_AN_ELEMENT) * 1_000)
    for raw in (UNKNOWN * 100, within(UNKNOWN * 100, 2), within(b"", 2) * 100):
        assert "single or unknown fields" in refusal(within(raw) * 1_000, of)


def test_the_largest_batch_of_ours_is_welcome() -> None:
    every = {field.name for field in ranking_pb2.RankRequest.DESCRIPTOR.fields}
    request = ranking_pb2.RankRequest(user_id="ann", candidates=[1], top_k=1, request_time_ms=1, model="m")
    request.allow_partial = request.recompute = request.exclude_unknown = request.exclude_seen = True
    request.features.names.append("price")
    request.features.values.append(1)
    request.rerank.method, request.retrieve.k = "mmr", 1
    request.retrieve.conditions.append("x")
    setattr(request, "return", "both")
    left = every - {field.name for field, _ in request.ListFields()}
    assert left <= {"context", "recent_events", "candidate_ids", "members"}, "a field that is new here"
    most = Limits(64, 9, 9, 9, 9, 256, request_timeout_ms=9, max_ranks_per_batch=256)
    rank_batch_limits(most).check(ranking_pb2.RankBatchRequest(requests=[request] * 256).SerializeToString())


def test_a_size() -> None:
    of = MessageLimits("Small", max_bytes=10)
    of.check(UNKNOWN * 5)
    assert refusal(UNKNOWN * 6, of) == "Small: got 12, must be at most 10 bytes"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x12" + varint(2**40),
        b"\x12" + b"\xff" * 30,
        b"\xff" * 30,
        b"\x78" + b"\xff" * 4_000_000,
        b"\x7c",
        b"\x7b",
        b"\x7e",
        b"\x7f",
        b"\x12",
        b"\x79\1",
    ],
    ids=["length", "long-length", "long-tag", "long-value", "end", "start", "type-6", "type-7", "cut", "cut-number"],
)
def test_what_is_malformed_is_left_to_protobuf(raw: bytes) -> None:
    limits(0).check(raw)
    with pytest.raises(DecodeError):
        ranking_pb2.RankRequest.FromString(raw)


def numbers() -> st.SearchStrategy[bytes]:
    """A field with a number, long forms of its varint included."""
    padded = st.integers(0, 3).map(lambda num: b"\x80" * num + b"\0")
    return st.tuples(st.integers(0, 2**64 - 1).map(varint) | padded).map(lambda parts: b"\x78" + parts[0])


PARTS = st.one_of(
    st.integers(0, 9).map(lambda num: rank(num_candidates=num)),
    st.integers(0, 9).map(unpacked),
    st.integers(0, 9).map(lambda num: rank(num_events=num)),
    st.integers(1, 4).map(lambda num: b"\x12" + b"\x88" + b"\x80" * num + b"\0" + b"\1" * 8),
    numbers(),
    st.binary(max_size=9),
    st.sampled_from([b"\x7b", b"\x7c", b"\x2a\0", b"\x32\0", b"\xaa\x80\0\0"]),
)


@settings(max_examples=1_000, deadline=None)
@given(st.lists(PARTS, max_size=8).map(b"".join))
def test_counts_are_those_of_protobuf(raw: bytes) -> None:
    try:
        message = ranking_pb2.RankRequest.FromString(raw)
    except DecodeError:
        return
    num_candidates, num_events = len(message.candidates), len(message.recent_events)
    limits(num_candidates, num_events, 1_000).check(raw)
    if num_candidates:
        assert "candidates" in refusal(raw, limits(num_candidates - 1, num_events, 1_000))
    if num_events:
        assert "recent_events" in refusal(raw, limits(num_candidates, num_events - 1, 1_000))

"""Arrays to the wire and back, against protobuf's own encoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import InvalidInput
from mfalcon.item_ids import item_id
from mfalcon.text_ids import TextIds
from mfalcon.types import EVENT_DTYPE, CacheSource, HistoryPage, UserAppend, no_events
from proto import ranking_pb2
from server.grpc import codec


@pytest.mark.parametrize("num_values", [1, 31, 32, 63, 77, 5_000, 600_000])
def test_packed_floats_are_what_protobuf_writes(num_values: int) -> None:
    values = np.random.default_rng(num_values).standard_normal(num_values).astype(np.float32)
    written = codec.packed_floats(ranking_pb2.RankResponse.TASK_SCORES_FIELD_NUMBER, values.reshape(1, -1))
    assert written == ranking_pb2.RankResponse(task_scores=values.tolist()).SerializeToString()


def test_packed_floats_take_any_layout() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    written = ranking_pb2.RankResponse.FromString(codec.packed_floats(1, values))
    assert list(written.scores) == values.ravel().tolist()


@given(st.integers(0, 2**64 - 1))
def test_varint(value: int) -> None:
    history_len_tag = b"\x08"
    written = ranking_pb2.AppendEventsResponse.FromString(history_len_tag + codec.varint(value))
    assert written.history_len == value


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_candidates(ids: list[int]) -> None:
    message = ranking_pb2.RankRequest.FromString(ranking_pb2.RankRequest(candidates=ids).SerializeToString())
    candidates = codec.rank_request(message, no_events(), TextIds()).candidates
    assert candidates.dtype == np.int64
    assert candidates.tolist() == ids


def test_events() -> None:
    message = ranking_pb2.Event(item_id=-5, actions=2**32 - 1, value=1.5, time_ms=7)
    text = ranking_pb2.Event(item_id=3, text_id="sku-1", time_ms=8)
    events = codec.events([message, ranking_pb2.Event(), text], "events", TextIds())
    assert events.dtype == EVENT_DTYPE
    assert events.tolist() == [(-5, 2**32 - 1, 1.5, 7), (0, 0, 0.0, 0), (item_id("sku-1"), 0, 0.0, 8)]
    assert codec.events([], "events", TextIds()).dtype == EVENT_DTYPE


def test_an_event_whose_text_is_no_id_is_named() -> None:
    messages = [ranking_pb2.Event(item_id=1), ranking_pb2.Event(text_id="a\0")]
    with pytest.raises(InvalidInput, match=r"recent_events\[1\]\.text_id: got 'a\\x00', must be 1 to 256 bytes"):
        codec.events(messages, "recent_events", TextIds())


def test_candidates_by_text() -> None:
    message = ranking_pb2.RankRequest(candidate_ids=["b", "7", "é", "b"])
    candidates = codec.candidates(message, TextIds())
    assert candidates.tolist() == [item_id("b"), 7, item_id("é"), item_id("b")]
    message.candidates.append(1)
    with pytest.raises(InvalidInput, match="candidate_ids: got 4, must be absent where candidates are given"):
        codec.candidates(message, TextIds())


def test_an_append_of_a_batch_whose_text_is_no_id_fails_alone() -> None:
    append, other = (
        ranking_pb2.AppendEventsRequest(user_id=user, events=[ranking_pb2.Event(text_id=text, time_ms=1)])
        for user, text in (("ann", "x" * 257), ("bob", "x"))
    )
    failed, fine = codec.user_appends(ranking_pb2.AppendBatchRequest(appends=[append, other]), TextIds())
    assert isinstance(failed, InvalidInput) and failed.field == "events[0].text_id"
    assert isinstance(fine, UserAppend) and fine.append.events["item_id"].tolist() == [item_id("x")]


def test_events_with_texts_are_told_with_both() -> None:
    events = np.array([(5, 1, 2.5, 9), (-6, 0, 0, 10)], dtype=EVENT_DTYPE)
    page = HistoryPage(2, b"v" * 16, 0, 0, events, b"v" * 16, texts=("sku", ""))
    told = ranking_pb2.GetHistoryResponse.FromString(codec.history_response(page)).events
    assert [(e.item_id, e.actions, e.value, e.time_ms, e.text_id) for e in told] == [
        (5, 1, 2.5, 9, "sku"),
        (-6, 0, 0, 10, ""),
    ]


def test_sources_have_the_same_names_and_numbers() -> None:
    assert dict(ranking_pb2.CacheInfo.Source.items()) == {source.name: source.value for source in CacheSource}

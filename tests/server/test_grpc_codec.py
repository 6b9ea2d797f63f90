"""Arrays to the wire and back, against protobuf's own encoder."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.types import EVENT_DTYPE, CacheSource, no_events
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
    candidates = codec.rank_request(message, no_events()).candidates
    assert candidates.dtype == np.int64
    assert candidates.tolist() == ids


def test_events() -> None:
    message = ranking_pb2.Event(item_id=-5, actions=2**32 - 1, value=1.5, time_ms=7)
    events = codec.events([message, ranking_pb2.Event()])
    assert events.dtype == EVENT_DTYPE
    assert events.tolist() == [(-5, 2**32 - 1, 1.5, 7), (0, 0, 0.0, 0)]
    assert codec.events([]).dtype == EVENT_DTYPE


def test_sources_have_the_same_names_and_numbers() -> None:
    assert dict(ranking_pb2.CacheInfo.Source.items()) == {source.name: source.value for source in CacheSource}

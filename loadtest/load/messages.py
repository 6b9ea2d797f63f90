"""Requests and answers as messages, for drivers that call gRPC themselves: they time and count every attempt."""

from collections.abc import Mapping
from types import MappingProxyType

from mfalcon.types import Events
from mfalcon_client import Ids, Ranking, decoding, encoding
from proto import ranking_pb2 as pb


def rank_message(
    user_id: str,
    candidates: Ids,
    *,
    request_time_ms: int = 0,
    context: Mapping[str, int] = MappingProxyType({}),
) -> pb.RankRequest:
    """A rank."""
    options = encoding.rank_options(candidates, request_time_ms=request_time_ms, context=context)
    return pb.RankRequest.FromString(encoding.user(user_id) + options)


def append_message(user_id: str, events: Events, expected_len: int | None) -> pb.AppendEventsRequest:
    """An append."""
    return pb.AppendEventsRequest.FromString(encoding.user(user_id) + encoding.append_options(events, expected_len))


def rank_result(response: pb.RankResponse) -> Ranking:
    """An answer as arrays."""
    return decoding.ranking(response.SerializeToString())

"""Messages of proto/ranking.proto to the project's words and back; arrays stay arrays.

Scores are the bulk of an answer, and protobuf takes them one Python float at a time (600 us for 16,000). A serialized
message is the concatenation of its fields in any order, so they are written here as the packed fields that they are
(6 us), behind the rest that protobuf writes.
"""

from collections.abc import Collection

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.interests import Interests, InterestsRequest
from mfalcon.returned import Returned
from mfalcon.text_ids import TextIds
from mfalcon.types import (
    EVENT_DTYPE,
    Append,
    Appended,
    CacheInfo,
    DenseFeatures,
    EnsembleInfo,
    Events,
    Floats,
    HistoryPage,
    HistoryRequest,
    Ids,
    KeptState,
    MemberResult,
    ModelInfo,
    ModelRank,
    RankPart,
    RankRequest,
    RankResult,
    Rerank,
    Retrieve,
    Timings,
    UserAppend,
)
from proto import ranking_pb2
from server.grpc.wire import FIXED32, FIXED64, LENGTH_DELIMITED
from server.limits import check_num_names

_WIRE_EVENT = np.dtype(
    [("tag", "u1"), ("len", "u1")]
    + [part for name in EVENT_DTYPE.names or () for part in ((f"{name}_tag", "u1"), (name, EVENT_DTYPE[name]))]
)
_EVENT_TAGS = {
    "item_id": ranking_pb2.Event.ITEM_ID_FIELD_NUMBER << 3 | FIXED64,
    "actions": ranking_pb2.Event.ACTIONS_FIELD_NUMBER << 3 | FIXED32,
    "value": ranking_pb2.Event.VALUE_FIELD_NUMBER << 3 | FIXED32,
    "time_ms": ranking_pb2.Event.TIME_MS_FIELD_NUMBER << 3 | FIXED64,
}


def rank_request(message: ranking_pb2.RankRequest, recent_events: Events, text_ids: TextIds) -> RankRequest:
    """The request with its events, of which only the texts of ids are checked. Raises InvalidInput."""
    return RankRequest(
        user_id=message.user_id,
        candidates=candidates(message, text_ids),
        top_k=message.top_k,
        request_time_ms=message.request_time_ms,
        recent_events=recent_events,
        context=dict(message.context),
        allow_partial=message.allow_partial,
        recompute=message.recompute,
        rerank=rerank(message.rerank) if message.HasField("rerank") else None,
        dense=dense_features(message.features) if message.HasField("features") else DenseFeatures(),
        retrieve=retrieve(message.retrieve) if message.HasField("retrieve") else None,
        returns=getattr(message, "return") or "both",
        exclude_unknown=message.exclude_unknown,
        exclude_seen=message.exclude_seen,
    )


def model_ranks(message: ranking_pb2.RankBatchRequest, text_ids: TextIds) -> list[ModelRank | InvalidInput]:
    """The ranks of a batch, of which only the texts of ids are checked; what is wrong with one is its own outcome."""
    ranks: list[ModelRank | InvalidInput] = []
    for each in message.requests:
        try:
            recent = events(each.recent_events, "recent_events", text_ids)
            ranks.append(ModelRank(rank_request(each, recent, text_ids), each.model))
        except InvalidInput as error:
            ranks.append(error)
    return ranks


def candidates(message: ranking_pb2.RankRequest, text_ids: TextIds) -> Ids:
    """Those of a request, by number or by text. Raises InvalidInput."""
    if not message.candidate_ids:
        return np.asarray(message.candidates, dtype=np.int64)
    if message.candidates:
        raise InvalidInput("candidate_ids", len(message.candidate_ids), "absent where candidates are given")
    return text_ids.all(message.candidate_ids, "candidate_ids")


def retrieve(message: ranking_pb2.Retrieve) -> Retrieve:
    """The same, not yet checked."""
    return Retrieve(message.model, tuple(message.conditions), message.k)


def interests_request(message: ranking_pb2.InterestsRequest, recent_events: Events) -> InterestsRequest:
    """The request with its events, not yet checked."""
    return InterestsRequest(
        message.user_id, tuple(message.conditions), message.top_items, message.request_time_ms, recent_events
    )


def interests_response(found: Interests) -> bytes:
    """A serialized InterestsResponse."""
    rest = ranking_pb2.InterestsResponse(
        conditions=found.conditions,
        dim=found.vectors.shape[1],
        nearest=[
            ranking_pb2.NearestItems(item_ids=each.item_ids.tolist(), scores=each.scores.tolist(), text_ids=each.texts)
            for each in found.nearest
        ],
        model_version=found.model_version,
        cache=cache_info(found.cache),
        timings=timings(found.timings),
        history_len=found.history_len,
        history_version=found.history_version,
        stale=found.stale,
        computed_ahead=found.computed_ahead,
    )
    vectors = packed_floats(ranking_pb2.InterestsResponse.VECTORS_FIELD_NUMBER, found.vectors)
    return rest.SerializeToString() + vectors


def rerank(message: ranking_pb2.Rerank) -> Rerank:
    """The same, not yet checked."""
    return Rerank(message.method, message.strength, message.depth, message.tail_weight)


def dense_features(message: ranking_pb2.DenseFeatures) -> DenseFeatures:
    """The names with the array of the values, of which only the number of names is checked. Raises InvalidInput."""
    check_num_names(message.names)
    num_values = len(message.values)
    # As a sequence they would be made one Python float at a time; serialized they are packed, behind the names.
    message.DiscardUnknownFields()
    raw = message.SerializeToString()
    values = np.frombuffer(raw, dtype="<f4", count=num_values, offset=len(raw) - 4 * num_values)
    return DenseFeatures(tuple(message.names), values)


def events(messages: Collection[ranking_pb2.Event], field: str, text_ids: TextIds) -> Events:
    """[num_events] of EVENT_DTYPE, of which only the texts of ids are checked. Raises InvalidInput."""
    found = np.array([(m.item_id, m.actions, m.value, m.time_ms) for m in messages], dtype=EVENT_DTYPE)
    for at, text in enumerate([m.text_id for m in messages]):
        if text:
            try:
                found["item_id"][at] = text_ids.one(text)
            except ValueError as error:
                raise InvalidInput(f"{field}[{at}].text_id", text, str(error)) from error
    return found


def rank_response(result: RankResult, returned: Returned) -> bytes:
    """A serialized RankResponse."""
    rest = ranking_pb2.RankResponse(
        tasks=result.tasks,
        top=result.top.tolist(),
        model_version=result.model_version,
        cache=cache_info(result.cache),
        timings=timings(result.timings),
        history_len=result.history_len,
        history_version=result.history_version,
        unknown=returned.unknown.tolist(),
        stale=result.stale,
        num_scored=result.num_scored,
        failed=returned.failed.tolist(),
        rerank_skipped=result.rerank_skipped,
        members=map(member_result, returned.members),
        partial_merge=result.partial_merge,
        counters_version=result.counters_version,
        counters_stale=result.counters_stale,
        items_version=result.items_version,
        graph_version=result.graph_version,
        candidates=result.candidates.tolist(),
        candidate_ids=result.candidate_texts,
    )
    return b"".join(
        (
            rest.SerializeToString(),
            packed_floats(ranking_pb2.RankResponse.SCORES_FIELD_NUMBER, returned.scores),
            packed_floats(ranking_pb2.RankResponse.TASK_SCORES_FIELD_NUMBER, returned.task_scores),
        )
    )


def rank_part(part: RankPart) -> bytes:
    """A serialized RankPart."""
    rest = ranking_pb2.RankPart(
        first=part.first,
        unknown=part.unknown.tolist(),
        failed=part.failed.tolist(),
        tasks=part.tasks,
        model_version=part.model_version,
    )
    return b"".join(
        (
            rest.SerializeToString(),
            packed_floats(ranking_pb2.RankPart.SCORES_FIELD_NUMBER, part.scores),
            packed_floats(ranking_pb2.RankPart.TASK_SCORES_FIELD_NUMBER, part.task_scores),
        )
    )


def last_part(result: RankResult) -> bytes:
    """The serialized RankPart that ends a stream."""
    return embedded(ranking_pb2.RankPart.ANSWER_FIELD_NUMBER, rank_response(result, Returned.without_scores(result)))


def append(message: ranking_pb2.AppendEventsRequest, events: Events) -> Append:
    """An append, not yet checked. events: of the message."""
    return Append(
        events,
        message.expected_len if message.HasField("expected_len") else None,
        message.expected_version if message.HasField("expected_version") else None,
        message.append_id,
        message.late_events,
    )


def user_appends(message: ranking_pb2.AppendBatchRequest, text_ids: TextIds) -> list[UserAppend | InvalidInput]:
    """The appends of a batch, of which only the texts of ids are checked; what is wrong with one is its own outcome."""
    appends: list[UserAppend | InvalidInput] = []
    for each in message.appends:
        try:
            appends.append(UserAppend(each.user_id, append(each, events(each.events, "events", text_ids))))
        except InvalidInput as error:
            appends.append(error)
    return appends


def append_response(told: Appended) -> ranking_pb2.AppendEventsResponse:
    """The message of the same name."""
    return ranking_pb2.AppendEventsResponse(
        history_len=told.history_len,
        version=told.version,
        clamped=told.clamped,
        inserted=told.inserted,
        discarded=told.discarded,
        was_written=told.was_written,
        lost_events=told.lost_events,
    )


def history_request(message: ranking_pb2.GetHistoryRequest) -> HistoryRequest:
    """The page that is asked for, not yet checked."""
    return HistoryRequest(
        message.user_id,
        message.first,
        message.limit,
        message.expected_version if message.HasField("expected_version") else None,
        message.with_states,
    )


def history_response(page: HistoryPage) -> bytes:
    """A serialized GetHistoryResponse."""
    rest = ranking_pb2.GetHistoryResponse(
        first=page.first,
        next_first=page.next_first,
        history_len=page.history_len,
        base=page.base,
        version=page.version,
        page_version=page.page_version,
        stale=page.stale,
        states=map(kept_state, page.states),
    )
    if page.texts:
        for values, text in zip(page.events.tolist(), page.texts, strict=True):
            item, actions, value, time_ms = values
            rest.events.add(item_id=item, actions=actions, value=value, time_ms=time_ms, text_id=text)
        return rest.SerializeToString()
    return rest.SerializeToString() + packed_events(ranking_pb2.GetHistoryResponse.EVENTS_FIELD_NUMBER, page.events)


def kept_state(state: KeptState) -> ranking_pb2.KeptState:
    """The message of the same name."""
    return ranking_pb2.KeptState(
        model=state.model,
        tier=ranking_pb2.CacheInfo.Source.Name(state.tier.value),
        first_event=state.first_event,
        num_events=state.num_events,
        num_tokens=state.num_tokens,
        num_bytes=state.num_bytes,
        fits=state.fits,
    )


def packed_events(field_number: int, values: Events) -> bytes:
    """The wire form of a `repeated Event` with a field number below 16: each is of one size, with a tag of one byte
    before each of its values.
    """
    wire = np.empty(len(values), dtype=_WIRE_EVENT)
    wire["tag"], wire["len"] = field_number << 3 | LENGTH_DELIMITED, _WIRE_EVENT.itemsize - 2
    for name, tag in _EVENT_TAGS.items():
        wire[f"{name}_tag"], wire[name] = tag, values[name]
    return wire.tobytes()


def packed_floats(field_number: int, values: Floats) -> bytes:
    """The wire form of a `repeated float`: tag, length in bytes, little-endian values in C order."""
    payload = np.asarray(values, dtype="<f4").tobytes()
    return varint(field_number << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload


def embedded(field_number: int, message: bytes) -> bytes:
    """The wire form of a serialized message in another one."""
    return varint(field_number << 3 | LENGTH_DELIMITED) + varint(len(message)) + message


def varint(value: int) -> bytes:
    """Base-128, least significant group first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def cache_info(cache: CacheInfo) -> ranking_pb2.CacheInfo:
    """The message of the same name; the sources carry the same numbers."""
    return ranking_pb2.CacheInfo(
        source=ranking_pb2.CacheInfo.Source.Name(cache.source.value),
        reused_tokens=cache.reused_tokens,
        encoded_tokens=cache.encoded_tokens,
    )


def timings(times: Timings) -> ranking_pb2.Timings:
    """The message of the same name."""
    return ranking_pb2.Timings(
        queue_us=times.queue_us,
        state_us=times.state_us,
        encode_us=times.encode_us,
        score_us=times.score_us,
        total_us=times.total_us,
        rerank_us=times.rerank_us,
        merge_us=times.merge_us,
        features_us=times.features_us,
    )


def member_result(member: MemberResult) -> ranking_pb2.MemberResult:
    """The message of the same name."""
    return ranking_pb2.MemberResult(
        model=member.model,
        address=member.address,
        weight=member.weight,
        version=member.version,
        arrived=member.arrived,
        cache=cache_info(member.cache) if member.arrived else None,
        timings=timings(member.timings) if member.arrived else None,
        unknown=member.unknown,
        failed=member.failed,
        error=member.error,
        took_us=member.took_us,
        items_version=member.items_version,
    )


def ensemble(info: EnsembleInfo) -> ranking_pb2.Ensemble:
    """The message of the same name."""
    members = [
        ranking_pb2.EnsembleMember(model=each.model, address=each.address, weight=each.weight, version=each.version)
        for each in info.members
    ]
    return ranking_pb2.Ensemble(
        merge=info.merge, budget_ms=info.budget_ms, min_members=info.min_members, members=members
    )


def model_response(model: ModelInfo) -> ranking_pb2.GetModelResponse:
    """The served model."""
    return ranking_pb2.GetModelResponse(
        name=model.name,
        version=model.version,
        architecture=model.architecture,
        backend=model.backend,
        tasks=model.tasks,
        actions=model.actions,
        context_features=[
            ranking_pb2.ContextFeature(
                name=feature.name,
                num_values=feature.num_values,
                values=feature.values,
                derived=feature.derived,
            )
            for feature in model.context_features
        ],
        dense_features=model.dense_features,
        counters=model.counters,
        max_history=model.max_history,
        max_candidates=model.max_candidates,
        prefix_stable=model.prefix_stable,
        task_infos=[
            ranking_pb2.TaskInfo(name=task.name, kind=task.kind, weight=task.weight) for task in model.task_infos
        ],
        ensemble=ensemble(model.ensemble) if model.ensemble is not None else None,
        counts_items=model.counts_items,
        reads_last_events=model.reads_last_events,
        items_version=model.items_version,
        graph_version=model.graph_version,
        conditions=model.conditions,
        item_ids=model.item_ids,
    )

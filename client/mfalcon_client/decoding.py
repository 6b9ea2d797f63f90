"""An answer's bytes to arrays. Raises DecodeError and ValueError for bytes that are no answer."""

import numpy as np

from mfalcon_client import messages as pb
from mfalcon_client.errors import ERRORS, ClientError, Overloaded, VersionConflict
from mfalcon_client.types import (
    EVENT_DTYPE,
    Appended,
    CacheInfo,
    CacheSource,
    ContextFeature,
    Ensemble,
    HistoryPage,
    Interests,
    KeptState,
    Member,
    MemberResult,
    Model,
    Nearest,
    Part,
    Ranking,
    Task,
    Timings,
)


def ranking(raw: bytes) -> Ranking:
    """Of a serialized RankResponse."""
    return _ranking(pb.RankResponse.FromString(raw))


def _ranking(reply: pb.RankResponse) -> Ranking:
    tasks, scores = tuple(reply.tasks), np.asarray(reply.scores, dtype=np.float32)
    return Ranking(
        scores=scores,
        tasks=tasks,
        task_scores=np.asarray(reply.task_scores, dtype=np.float32).reshape(len(tasks), len(scores)),
        top=np.asarray(reply.top, dtype=np.int64),
        unknown=np.asarray(reply.unknown, dtype=np.int64),
        failed=np.asarray(reply.failed, dtype=np.int64),
        model_version=reply.model_version,
        cache=_cache(reply.cache),
        timings=_timings(reply.timings),
        history_len=reply.history_len,
        stale=reply.stale,
        rerank_skipped=reply.rerank_skipped,
        members=tuple(map(_member, reply.members)),
        partial_merge=reply.partial_merge,
        counters_version=reply.counters_version,
        counters_stale=reply.counters_stale,
        history_version=reply.history_version,
        items_version=reply.items_version,
        graph_version=reply.graph_version,
        candidates=np.asarray(reply.candidates, dtype=np.int64),
        candidate_texts=tuple(reply.candidate_ids),
        num_scored=reply.num_scored or len(scores),
    )


def rank_part(raw: bytes) -> tuple[Part, Ranking | None]:
    """Of a serialized RankPart; with the answer, without its scores, of the last one."""
    reply = pb.RankPart.FromString(raw)
    tasks, scores = tuple(reply.tasks), np.asarray(reply.scores, dtype=np.float32)
    part = Part(
        first=reply.first,
        scores=scores,
        task_scores=np.asarray(reply.task_scores, dtype=np.float32).reshape(len(tasks), len(scores)),
        unknown=np.asarray(reply.unknown, dtype=np.int64),
        failed=np.asarray(reply.failed, dtype=np.int64),
        tasks=tasks,
        model_version=reply.model_version,
    )
    return part, _ranking(reply.answer) if reply.HasField("answer") else None


def interests(raw: bytes) -> Interests:
    """Of a serialized InterestsResponse."""
    reply = pb.InterestsResponse.FromString(raw)
    return Interests(
        conditions=tuple(reply.conditions),
        vectors=np.asarray(reply.vectors, dtype=np.float32).reshape(len(reply.conditions), reply.dim),
        nearest=tuple(
            Nearest(
                np.asarray(each.item_ids, dtype=np.int64),
                np.asarray(each.scores, dtype=np.float32),
                tuple(each.text_ids),
            )
            for each in reply.nearest
        ),
        model_version=reply.model_version,
        cache=_cache(reply.cache),
        timings=_timings(reply.timings),
        history_len=reply.history_len,
        history_version=reply.history_version,
        stale=reply.stale,
        computed_ahead=reply.computed_ahead,
    )


def appended(raw: bytes) -> Appended:
    """Of a serialized AppendEventsResponse."""
    return _appended(pb.AppendEventsResponse.FromString(raw))


def rankings(raw: bytes) -> list[Ranking | ClientError]:
    """Of a serialized RankBatchResponse."""
    replies = pb.RankBatchResponse.FromString(raw).outcomes
    return [_failed(reply.failure) if reply.HasField("failure") else _ranking(reply.ranked) for reply in replies]


def outcomes(raw: bytes) -> tuple[Appended | ClientError, ...]:
    """Of a serialized AppendBatchResponse."""
    replies = pb.AppendBatchResponse.FromString(raw).outcomes
    return tuple(
        _failed(reply.failure) if reply.HasField("failure") else _appended(reply.appended) for reply in replies
    )


def _failed(failure: pb.Failure) -> ClientError:
    """What a call of its own would have raised."""
    kind = ERRORS.get(failure.code, ClientError)
    unknown = failure.outcome_unknown
    if kind is VersionConflict:
        known, version = failure.history_len, failure.history_version
        return VersionConflict(
            failure.code, failure.message, outcome_unknown=unknown, history_len=known, history_version=version
        )
    if kind is Overloaded:
        after_s = failure.retry_after_ms / 1000 if failure.HasField("retry_after_ms") else None
        return Overloaded(failure.code, failure.message, outcome_unknown=unknown, retry_after_s=after_s)
    return kind(failure.code, failure.message, outcome_unknown=unknown)


def _appended(reply: pb.AppendEventsResponse) -> Appended:
    return Appended(
        history_len=reply.history_len,
        was_found=reply.was_written,
        version=reply.version,
        clamped=tuple(reply.clamped),
        inserted=tuple(reply.inserted),
        discarded=tuple(reply.discarded),
        lost_events=reply.lost_events,
    )


def history_page(raw: bytes) -> HistoryPage:
    """Of a serialized GetHistoryResponse."""
    reply = pb.GetHistoryResponse.FromString(raw)
    rows = [(event.item_id, event.actions, event.value, event.time_ms) for event in reply.events]
    texts = tuple(event.text_id for event in reply.events)
    return HistoryPage(
        events=np.array(rows, dtype=EVENT_DTYPE),
        first=reply.first,
        next_first=reply.next_first,
        history_len=reply.history_len,
        base=reply.base,
        version=reply.version,
        page_version=reply.page_version,
        stale=reply.stale,
        states=tuple(map(_kept_state, reply.states)),
        texts=texts if any(texts) else (),
    )


def cache_info(raw: bytes) -> CacheInfo:
    """Of a serialized CacheInfo."""
    return _cache(pb.CacheInfo.FromString(raw))


def model(raw: bytes) -> Model:
    """Of a serialized GetModelResponse."""
    return _model(pb.GetModelResponse.FromString(raw))


def models(raw: bytes) -> tuple[Model, ...]:
    """Of a serialized ListModelsResponse."""
    return tuple(map(_model, pb.ListModelsResponse.FromString(raw).models))


def nothing(_: bytes) -> None:
    """Of an answer that says nothing but that it is done."""


def _cache(info: pb.CacheInfo) -> CacheInfo:
    return CacheInfo(_source(info.source), info.reused_tokens, info.encoded_tokens)


def _timings(times: pb.Timings) -> Timings:
    return Timings(
        times.queue_us,
        times.state_us,
        times.encode_us,
        times.score_us,
        times.total_us,
        times.rerank_us,
        times.merge_us,
        times.features_us,
    )


def _member(member: pb.MemberResult) -> MemberResult:
    return MemberResult(
        model=member.model,
        address=member.address,
        weight=member.weight,
        version=member.version,
        arrived=member.arrived,
        cache=_cache(member.cache),
        timings=_timings(member.timings),
        unknown=np.asarray(member.unknown, dtype=np.int64),
        failed=np.asarray(member.failed, dtype=np.int64),
        error=member.error,
        took_us=member.took_us,
        items_version=member.items_version,
    )


def _kept_state(state: pb.KeptState) -> KeptState:
    return KeptState(
        model=state.model,
        tier=_source(state.tier),
        first_event=state.first_event,
        num_events=state.num_events,
        num_tokens=state.num_tokens,
        num_bytes=state.num_bytes,
        fits=state.fits,
    )


def _source(number: int) -> CacheSource:
    """A tier that a newer server has counts as none that is known here."""
    try:
        return CacheSource(number)
    except ValueError:
        return CacheSource.NONE


def _model(reply: pb.GetModelResponse) -> Model:
    return Model(
        name=reply.name,
        version=reply.version,
        architecture=reply.architecture,
        tasks=tuple(reply.tasks),
        actions=tuple(reply.actions),
        context_features=tuple(
            ContextFeature(f.name, f.num_values, tuple(f.values), f.derived) for f in reply.context_features
        ),
        dense_features=tuple(reply.dense_features),
        max_history=reply.max_history,
        max_candidates=reply.max_candidates,
        prefix_stable=reply.prefix_stable,
        backend=reply.backend,
        task_infos=tuple(Task(task.name, task.kind, task.weight) for task in reply.task_infos),
        ensemble=_ensemble(reply.ensemble) if reply.HasField("ensemble") else None,
        counts_items=reply.counts_items,
        reads_last_events=reply.reads_last_events,
        counters=tuple(reply.counters),
        items_version=reply.items_version,
        graph_version=reply.graph_version,
        conditions=tuple(reply.conditions),
        item_ids=reply.item_ids or "integer",
    )


def _ensemble(ensemble: pb.Ensemble) -> Ensemble:
    members = tuple(Member(m.model, m.address, m.weight, m.version) for m in ensemble.members)
    return Ensemble(ensemble.merge, ensemble.budget_ms, ensemble.min_members, members)

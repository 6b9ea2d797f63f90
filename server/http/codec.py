"""Answers to JSON: from numpy to orjson, without passing through the models of replies.py and rank_replies.py."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import orjson

from mfalcon.errors import HistoryMismatch, InvalidInput, MFalconError, Overloaded
from mfalcon.interests import Interests
from mfalcon.returned import Returned
from mfalcon.types import (
    Appended,
    AppendOutcome,
    CacheInfo,
    HistoryPage,
    Ids,
    MemberResult,
    ModelInfo,
    RankOutcome,
    RankPart,
    RankResult,
    Returns,
)
from server.outcome import Outcome, outcome_of


def rank_reply(result: RankResult, returns: Returns) -> bytes:
    """A RankReply as JSON."""
    return dump(rank_fields(result, Returned.of(result, returns)))


def part_reply(part: RankPart) -> bytes:
    """A RankStreamReply as JSON, of scores."""
    return dump(
        {
            "first": part.first,
            "scores": part.scores,
            "task_scores": part.task_scores.ravel(),
            "unknown": part.unknown,
            "failed": part.failed,
            "tasks": part.tasks,
            "model_version": part.model_version,
        }
    )


def last_part_reply(result: RankResult) -> bytes:
    """The RankStreamReply that ends a stream, as JSON."""
    return dump({"answer": rank_fields(result, Returned.without_scores(result))})


def rank_fields(result: RankResult, returned: Returned) -> dict[str, object]:
    """A RankReply."""
    return {
        "scores": returned.scores,
        "tasks": result.tasks,
        "task_scores": returned.task_scores.ravel(),
        "top": result.top,
        "model_version": result.model_version,
        "cache": cache_fields(result.cache),
        "timings": result.timings,
        "history_len": result.history_len,
        "history_version": result.history_version.hex(),
        "unknown": returned.unknown,
        "stale": result.stale,
        "num_scored": result.num_scored,
        "failed": returned.failed,
        "rerank_skipped": result.rerank_skipped,
        "members": [member_fields(member) for member in returned.members],
        "partial_merge": result.partial_merge,
        "counters_version": result.counters_version,
        "counters_stale": result.counters_stale,
        "items_version": result.items_version,
        "graph_version": result.graph_version,
        "candidates": told_ids(result.candidates, result.candidate_texts),
    }


def rank_batch_reply(
    outcomes: Sequence[RankOutcome], returns: Sequence[Returns], code_of: Callable[[MFalconError], str]
) -> bytes:
    """A RankBatchReply as JSON. returns: of each request. code_of: names the status of an error."""
    told = [
        {"ranked": rank_fields(outcome, Returned.of(outcome, wanted))}
        if isinstance(outcome, RankResult)
        else _failure(outcome, code_of)
        for outcome, wanted in zip(outcomes, returns, strict=True)
    ]
    return dump({"outcomes": told})


def interests_reply(found: Interests) -> bytes:
    """An InterestsReply as JSON."""
    return dump(
        {
            "conditions": found.conditions,
            "dim": found.vectors.shape[1],
            "vectors": found.vectors.ravel(),
            "nearest": [
                {"item_ids": told_ids(each.item_ids, each.texts), "scores": each.scores} for each in found.nearest
            ],
            "model_version": found.model_version,
            "cache": cache_fields(found.cache),
            "timings": found.timings,
            "history_len": found.history_len,
            "history_version": found.history_version.hex(),
            "stale": found.stale,
            "computed_ahead": found.computed_ahead,
        }
    )


def append_reply(told: Appended) -> bytes:
    """An AppendEventsReply as JSON."""
    return dump(append_fields(told))


def append_fields(told: Appended) -> dict[str, object]:
    """An AppendEventsReply."""
    fields = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    del fields["previous"]  # our own
    return fields | {"version": told.version.hex()}


def batch_reply(outcomes: Sequence[AppendOutcome], code_of: Callable[[MFalconError], str]) -> bytes:
    """An AppendBatchReply as JSON. code_of: names the status of an error."""
    return dump({"outcomes": [_outcome_fields(outcome, code_of) for outcome in outcomes]})


def _outcome_fields(outcome: AppendOutcome, code_of: Callable[[MFalconError], str]) -> dict[str, object]:
    """An AppendOutcomeReply."""
    return {"appended": append_fields(outcome)} if isinstance(outcome, Appended) else _failure(outcome, code_of)


def _failure(outcome: MFalconError, code_of: Callable[[MFalconError], str]) -> dict[str, object]:
    """A FailureReply, as the outcome of a part of a call."""
    fields: dict[str, object] = {"code": code_of(outcome), "message": str(outcome), "outcome": outcome_of(outcome)}
    fields["field"] = outcome.field if isinstance(outcome, InvalidInput) else None
    if isinstance(outcome, Overloaded) and outcome.retry_after_s is not None:
        fields["retry_after_ms"] = math.ceil(1_000 * outcome.retry_after_s)
    if isinstance(outcome, HistoryMismatch):
        fields |= {"history_len": outcome.history_len, "history_version": outcome.version_hex}
    return {"failure": fields}


def told_ids(item_ids: Ids, texts: Sequence[str]) -> Ids | list[str]:
    """The items; where ids are text all by text, of one that has none its number, which stands for the same item."""
    return [text or str(item) for item, text in zip(item_ids.tolist(), texts, strict=True)] if texts else item_ids


def cache_reply(cache: CacheInfo) -> bytes:
    """A CacheReply as JSON."""
    return dump(cache_fields(cache))


def cache_fields(cache: CacheInfo) -> dict[str, str | int]:
    """The source goes by its name."""
    return {
        "source": cache.source.name,
        "reused_tokens": cache.reused_tokens,
        "encoded_tokens": cache.encoded_tokens,
    }


def member_fields(member: MemberResult) -> dict[str, object]:
    """A MemberReply."""
    fields = {field.name: getattr(member, field.name) for field in dataclasses.fields(member)}
    return fields | {"cache": cache_fields(member.cache)}


def history_reply(page: HistoryPage) -> bytes:
    """A HistoryReply as JSON."""
    names = page.events.dtype.names or ()
    events = [dict(zip(names, values, strict=True)) for values in page.events.tolist()]
    for event, text in zip(events, page.texts, strict=False):
        event["item_id"] = text or str(event["item_id"])
    return dump(
        {
            "events": events,
            "first": page.first,
            "next_first": page.next_first,
            "history_len": page.history_len,
            "base": page.base,
            "version": page.version.hex(),
            "page_version": page.page_version.hex(),
            "stale": page.stale,
            "states": [
                {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
                | {"tier": state.tier.name}
                for state in page.states
            ],
        }
    )


def model_reply(model: ModelInfo) -> bytes:
    """A ModelReply as JSON."""
    return dump(model)


def models_reply(models: Sequence[ModelInfo]) -> bytes:
    """A ModelsReply as JSON."""
    return dump({"models": models})


def is_write(method: str, path: str) -> bool:
    """Whether a request is an append, or several, or a deletion, whose failure says what became of it."""
    if path == "/v1/events":
        return method == "POST"
    return path.startswith("/v1/users/") and (method == "DELETE" or (method == "POST" and path.endswith("/events")))


def error_reply(code: str, message: str, field: str | None, outcome: Outcome | None = None) -> bytes:
    """An ErrorReply as JSON. outcome: of a write."""
    detail = {"code": code, "message": message, "field": field}
    return dump({"error": detail if outcome is None else detail | {"outcome": outcome}})


def dump(content: object) -> bytes:
    """JSON of dataclasses and contiguous arrays too."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)

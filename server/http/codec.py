"""JSON bodies of answers. The models describe them in /openapi.json; the answers themselves go from numpy to orjson
without passing through them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import orjson
from pydantic import ConfigDict, Field

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
    RerankSkipped,
    Returns,
)
from server.http.fields import Body, Int64, Uint32, Uint64, Version
from server.outcome import Outcome, outcome_of


class EventReply(Body):
    """One user action on one item."""

    item_id: Int64 | str = Field(description="Text where ids are, of an item that no served model knows its number.")
    actions: Uint32
    value: float
    time_ms: Int64


class KeptStateReply(Body):
    """A KV state of the user."""

    model: str
    tier: Literal["GPU", "HOST", "REDIS"]
    first_event: Uint64
    num_events: Uint64
    num_tokens: Uint64
    num_bytes: Uint64
    fits: bool = Field(description="It is of the history as it is now: the next rank may begin with it.")


class HistoryReply(Body):
    """Events of a user's history from position `first` on."""

    events: list[EventReply]
    first: Uint64 = Field(description="Not the one that you asked for, if that is trimmed or after the last event.")
    next_first: Uint64 = Field(description="Where the next page begins; history_len if there is none.")
    history_len: Uint64 = Field(description="Of the whole history, trimmed events included.")
    base: Uint64 = Field(description="The position of the oldest event that is kept.")
    version: Version = Field(description="Of the whole history: give it as expected_version for the next page.")
    page_version: Version = Field(description="Of the history when it ended at next_first.")
    stale: bool = Field(description="The event log could not be asked; newer events may exist.")
    states: list[KeptStateReply] = Field(description="Of the models of this replica, if you asked with_states.")


class CacheReply(Body):
    """What a request reused of the cached KV state and what it had to encode, in tokens."""

    source: Literal["NONE", "GPU", "HOST", "REDIS"]
    reused_tokens: Uint64
    encoded_tokens: Uint64


class TimingsReply(Body):
    """Where the time went, in microseconds."""

    queue_us: Uint64
    state_us: Uint64
    encode_us: Uint64
    score_us: Uint64
    total_us: Uint64
    rerank_us: Uint64 = Field(description="0 where no reranking was asked.")
    merge_us: Uint64 = Field(description="0 for one model.")
    features_us: Uint64 = Field(description="Making dense features and counters of the candidates.")


class MemberReply(Body):
    """What a member of an ensemble gave to an answer."""

    model: str
    address: str = Field(description="Of the replica that was asked, empty for this one.")
    weight: float
    version: str = Field(description="Empty if it did not arrive.")
    arrived: bool = Field(description="Its scores are in the merge.")
    cache: CacheReply
    timings: TimingsReply
    unknown: list[Uint32] = Field(description="Positions of candidates that it does not know.")
    failed: list[Uint32] = Field(description="Positions of candidates that it has no score for.")
    error: str = Field(
        description="Why it did not arrive, behind a word: late, overloaded, away, disagrees, outdated or failed."
    )
    took_us: Uint64
    items_version: str = Field(description="As of a whole answer.")


class RankReply(Body):
    """Scores, aligned with the candidates; with `top` if you said that this is what to return."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "scores": [0.71, 0.93, 0.12],
                    "tasks": ["like", "rating"],
                    "task_scores": [0.71, 0.93, 0.12, 3.9, 4.4, 2.1],
                    "top": [1, 0],
                    "model_version": "5f0c8d2ab1e94c77",
                    "cache": {"source": "HOST", "reused_tokens": 92, "encoded_tokens": 1},
                    "timings": {
                        "queue_us": 40,
                        "state_us": 12,
                        "encode_us": 310,
                        "score_us": 450,
                        "total_us": 812,
                        "rerank_us": 0,
                        "merge_us": 0,
                        "features_us": 0,
                    },
                    "history_len": 92,
                    "history_version": "a5f3c6a11b03839d46af9fb43c97c188",
                    "unknown": [],
                    "stale": False,
                    "num_scored": 3,
                    "failed": [],
                    "rerank_skipped": "",
                    "members": [],
                    "partial_merge": False,
                    "counters_version": 0,
                    "counters_stale": False,
                    "items_version": "",
                    "graph_version": "",
                    "candidates": [],
                }
            ]
        }
    )

    scores: list[float] = Field(description="The blend of the tasks: the score that ranks.")
    tasks: list[str]
    task_scores: list[float] = Field(description="Task-major: task t of score s is at t * len(scores) + s.")
    top: list[Uint32] = Field(
        description="Positions in the candidates, best first, ties by position; as reranked if you asked for that."
    )
    model_version: str
    cache: CacheReply
    timings: TimingsReply
    history_len: Uint64 = Field(description="Events acknowledged for this user.")
    history_version: Version = Field(description="Of the history at that length.")
    unknown: list[Uint32] = Field(description="Positions of candidates that the model does not know.")
    stale: bool = Field(description="The event log could not be asked; newer events may exist.")
    num_scored: Uint32 = Field(
        description="Everything here is of so many candidates, the first ones: of all unless you said allow_partial."
    )
    failed: list[Uint32] = Field(
        description="Positions of candidates for which the model gives no finite number: their scores are the lowest "
        "float32, and they come last."
    )
    rerank_skipped: RerankSkipped | Literal[""] = Field(
        description="Why `top` is in the order of the scores although you asked for another."
    )
    members: list[MemberReply] = Field(description="Of an ensemble, every member in its order; none for one model.")
    partial_merge: bool = Field(
        description="Some member did not arrive, or has no score for some candidate: the scores are right, and not "
        "those of all members."
    )
    counters_version: Uint64 = Field(description="Of the counters of items that the model read; 0 if it reads none.")
    counters_stale: bool = Field(description="Acknowledged events may be missing from the counters of items.")
    items_version: str = Field(
        description="Of the item table that the scores are of: the number of the last delta in it, and a hash of all "
        "of them. Empty of the checkpoint's own rows, and of an ensemble."
    )
    graph_version: str = Field(
        description="Of the graph vectors that the scores are of: their number and a hash. Empty of the checkpoint's "
        "own, of a model that reads none, and of an ensemble."
    )
    candidates: list[Int64 | str] = Field(
        description="Where you said `retrieve`: the items that all else is aligned with."
    )


class NearestReply(Body):
    """Items of a condition's category, the nearest first."""

    item_ids: list[Int64 | str]
    scores: list[float] = Field(description="Logits among the items of the category: larger is nearer.")


class InterestsReply(Body):
    """A user's interests, aligned with the conditions."""

    conditions: list[str] = Field(description="Those that you asked, or all of the model's.")
    dim: Uint32
    vectors: list[float] = Field(
        description="Row-major, of length 1: coordinate i of the interest of condition c is at c * dim + i."
    )
    nearest: list[NearestReply] = Field(description="Of each condition, if you gave top_items.")
    model_version: str
    cache: CacheReply
    timings: TimingsReply = Field(description="The search for items is in total_us alone.")
    history_len: Uint64 = Field(description="Events acknowledged for this user.")
    history_version: Version = Field(description="Of the history at that length.")
    stale: bool = Field(description="The event log could not be asked; newer events may exist.")
    computed_ahead: bool = Field(description="They were computed by a prefill, of exactly this history.")


class AppendEventsReply(Body):
    """The events are acknowledged. All that are named by no list below came last, as they are."""

    history_len: Uint64 = Field(description="Events acknowledged for this user, these included.")
    version: Version = Field(description="Of the history at that length.")
    clamped: list[Uint32] = Field(description="Positions of late events that were given the newest one's time.")
    inserted: list[Uint32] = Field(description="Positions of late events that went where their time belongs.")
    discarded: list[Uint32] = Field(description="Positions of events older than all that is kept: they are not kept.")
    was_written: bool = Field(description="An earlier append of this append_id had done this; it is told again.")
    lost_events: Uint64 = Field(description="Events once acknowledged that the log has lost, as this replica knows.")


class FailureReply(Body):
    """How a part of a call has failed."""

    code: str = Field(description="Name of the gRPC status that it would have ended with as a call of its own.")
    message: str
    field: str | None = Field(description="The field that is wrong, if one is.")
    outcome: Outcome = Field(description="Whether it may have happened all the same.")
    retry_after_ms: Uint32 | None = Field(default=None, description="When the same would have been accepted.")
    history_len: Uint64 | None = Field(default=None, description="Of FAILED_PRECONDITION: what the history is.")
    history_version: Version | None = None


class RankOutcomeReply(Body):
    """What became of a rank: one of the two."""

    ranked: RankReply | None = None
    failure: FailureReply | None = None


class RankBatchReply(Body):
    """What became of each rank, in their order."""

    outcomes: list[RankOutcomeReply]


class AppendOutcomeReply(Body):
    """What became of an append: one of the two."""

    appended: AppendEventsReply | None = None
    failure: FailureReply | None = None


class AppendBatchReply(Body):
    """What became of each append, in their order."""

    outcomes: list[AppendOutcomeReply]


class DeleteUserReply(Body):
    """Empty: the user is forgotten."""


class ContextFeatureReply(Body):
    """A request-context feature that the model reads."""

    name: str
    num_values: Uint64 = Field(description="Legal values are 0 to num_values - 1.")
    values: list[str] = Field(description="Names of the values, if they have any.")
    derived: bool = Field(description="Filled in from the request time if you do not give it.")


class TaskReply(Body):
    """What a task's scores are."""

    name: str
    kind: Literal["binary", "regression"] = Field(description="Probabilities, or values.")
    weight: float = Field(description="In the blend that ranks.")


class EnsembleMemberReply(Body):
    """A member of an ensemble."""

    model: str
    address: str = Field(description="Of the replica that is asked, empty for this one.")
    weight: float
    version: str = Field(description="Empty while it is not known.")


class EnsembleReply(Body):
    """Several models that answer as one."""

    merge: Literal["logit", "probability"] = Field(description="What is averaged of a binary task.")
    budget_ms: Uint64 = Field(description="After so long the merge takes what has arrived.")
    min_members: Uint64
    members: list[EnsembleMemberReply]


class ModelReply(Body):
    """A served model."""

    name: str
    version: str
    architecture: str
    backend: str
    tasks: list[str]
    actions: list[str]
    context_features: list[ContextFeatureReply]
    dense_features: list[str] = Field(description="Names of the numbers of each candidate that the model reads.")
    counters: list[str] = Field(description="Counters that the model reads and the server counts: nobody gives them.")
    max_history: Uint64
    max_candidates: Uint64
    prefix_stable: bool
    task_infos: list[TaskReply] = Field(description="Of each task, in order.")
    ensemble: EnsembleReply | None = Field(description="Null for one model.")
    counts_items: bool = Field(
        description="Its checkpoint says how often each item was acted on, which rerank.tail_weight needs."
    )
    reads_last_events: bool = Field(description="It has no KV state, and reads the last events with each request.")
    items_version: str = Field(description="Of its item table, as answers name it.")
    graph_version: str = Field(description="Of its graph vectors, as answers name them.")
    conditions: list[str] = Field(description="What /v1/interests may ask it; none of a model that ranks items.")
    item_ids: Literal["integer", "text"] = Field(description="What the ids of its items are; requests may name either.")


class ModelsReply(Body):
    """Every served model, the default one first, and then every ensemble."""

    models: list[ModelReply]


class ErrorDetail(Body):
    """Why there is no result."""

    code: str = Field(description="Name of the gRPC status that means the same.", examples=["INVALID_ARGUMENT"])
    message: str = Field(examples=["candidates: got '0 candidates', must be 1 to 16384 candidates"])
    field: str | None = Field(description="The field that is wrong, if one is.", examples=["candidates"])
    outcome: Outcome | None = Field(
        default=None, description="Of an append or a deletion: whether it may have happened all the same."
    )


class ErrorReply(Body):
    """The answer to every request that has no result."""

    error: ErrorDetail


class RankStreamReply(Body):
    """A line of a stream: a part with scores, or the last one, which has `answer` or `error` alone."""

    first: Uint32 | None = Field(default=None, description="The position of the first candidate that it is of.")
    scores: list[float] | None = Field(default=None, description="Of the candidates from there on.")
    task_scores: list[float] | None = Field(default=None, description="Task-major within the part.")
    unknown: list[Uint32] | None = Field(default=None, description="Positions among all candidates, of those here.")
    failed: list[Uint32] | None = None
    tasks: list[str] | None = None
    model_version: str | None = None
    answer: RankReply | None = Field(default=None, description="All of the answer but its scores and task_scores.")
    error: ErrorDetail | None = Field(default=None, description="Why there are no more; the parts before are right.")


class StatusReply(Body):
    """The state of the server."""

    status: str


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

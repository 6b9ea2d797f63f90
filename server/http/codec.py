"""JSON bodies of the HTTP transport: requests checked for type by strict pydantic, answers written by orjson.

Field names are those of proto/ranking.proto; 64-bit integers are JSON numbers. The answer models describe the answers
in /openapi.json; the answers themselves go from numpy to orjson without passing through them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, FailFast, Field

from mfalcon.types import EVENT_DTYPE, CacheInfo, Events, ModelInfo, RankRequest, RankResult

MAX_FLOAT32 = float(np.finfo(np.float32).max)

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Uint64 = Annotated[int, Field(ge=0, le=2**64 - 1)]
Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Float32 = Annotated[float, Field(ge=-MAX_FLOAT32, le=MAX_FLOAT32)]


class Body(BaseModel):
    """No "7" or true for an integer, no NaN, no field that we do not know."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class EventBody(Body):
    """One user action on one item."""

    item_id: Int64
    actions: Uint32 = Field(default=0, description="Bitmask over the model's actions: bit i is actions[i].")
    value: Float32 = Field(default=0.0, description="A rating, a dwell time: whatever the model was trained on.")
    time_ms: Int64 = Field(description="Milliseconds since 1970-01-01T00:00:00Z.")


class RankBody(Body):
    """Candidates to score for a user."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "186",
                    "candidates": [50, 181, 258],
                    "top_k": 2,
                    "recent_events": [{"item_id": 7, "actions": 8, "value": 4.0, "time_ms": 893286638000}],
                    "context": {"gender": 1},
                }
            ]
        }
    )

    user_id: str
    candidates: Annotated[list[Int64], FailFast()] = Field(description="Item ids, any order, duplicates allowed.")
    top_k: Uint32 = Field(default=0, description="How many positions `top` names; 0 for none.")
    request_time_ms: Int64 = Field(default=0, description="The time that the model sees as now; 0 is the server's.")
    recent_events: Annotated[list[EventBody], FailFast()] = Field(
        default=[], description="Events after the stored history that this request alone sees, in time order."
    )
    context: dict[str, Int64] = Field(default={}, description="Request-context features by name.")
    model: str = Field(default="", description="The model's name; empty is the default one.")

    def request(self) -> RankRequest:
        """The request, not yet checked against limits."""
        return RankRequest(
            user_id=self.user_id,
            candidates=np.array(self.candidates, dtype=np.int64),
            top_k=self.top_k,
            request_time_ms=self.request_time_ms,
            recent_events=events(self.recent_events),
            context=self.context,
        )


class AppendEventsBody(Body):
    """Events to add to the end of a user's history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"item_id": 50, "actions": 16, "value": 5.0, "time_ms": 893286700000}], "expected_len": 12}
            ]
        }
    )

    events: Annotated[list[EventBody], FailFast()] = Field(description="In time order, not older than the history.")
    expected_len: Uint64 | None = Field(
        default=None, description="Length of the history that you know; if it is another, nothing is written."
    )


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


class RankReply(Body):
    """Scores, aligned with the candidates."""

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
                    "timings": {"queue_us": 40, "state_us": 12, "encode_us": 310, "score_us": 450, "total_us": 812},
                    "history_len": 92,
                    "unknown": [],
                    "stale": False,
                }
            ]
        }
    )

    scores: list[float] = Field(description="The blend of the tasks: the score that ranks.")
    tasks: list[str]
    task_scores: list[float] = Field(description="Task-major: task t of candidate c is at t * num_candidates + c.")
    top: list[Uint32] = Field(description="Positions in the candidates, best first, ties by position.")
    model_version: str
    cache: CacheReply
    timings: TimingsReply
    history_len: Uint64 = Field(description="Events acknowledged for this user.")
    unknown: list[Uint32] = Field(description="Positions of candidates that the model does not know.")
    stale: bool = Field(description="The event log could not be asked; newer events may exist.")


class AppendEventsReply(Body):
    """The new length of the history."""

    history_len: Uint64


class DeleteUserReply(Body):
    """Empty: the user is forgotten."""


class ContextFeatureReply(Body):
    """A request-context feature that the model reads."""

    name: str
    num_values: Uint64 = Field(description="Legal values are 0 to num_values - 1.")
    values: list[str] = Field(description="Names of the values, if they have any.")
    derived: bool = Field(description="Filled in from the request time if you do not give it.")


class ModelReply(Body):
    """A served model."""

    name: str
    version: str
    architecture: str
    backend: str
    tasks: list[str]
    actions: list[str]
    context_features: list[ContextFeatureReply]
    max_history: Uint64
    max_candidates: Uint64
    prefix_stable: bool


class ModelsReply(Body):
    """Every served model, the default one first."""

    models: list[ModelReply]


class ErrorDetail(Body):
    """Why there is no result."""

    code: str = Field(description="Name of the gRPC status that means the same.", examples=["INVALID_ARGUMENT"])
    message: str = Field(examples=["candidates: got '0 candidates', must be 1 to 16384 candidates"])
    field: str | None = Field(description="The field that is wrong, if one is.", examples=["candidates"])


class ErrorReply(Body):
    """The answer to every request that has no result."""

    error: ErrorDetail


class StatusReply(Body):
    """The state of the server."""

    status: str


def events(bodies: list[EventBody]) -> Events:
    """[num_events] of EVENT_DTYPE, not yet checked against limits."""
    return np.array([(b.item_id, b.actions, b.value, b.time_ms) for b in bodies], dtype=EVENT_DTYPE)


def rank_reply(result: RankResult) -> bytes:
    """A RankReply as JSON."""
    return dump(
        {
            "scores": result.scores,
            "tasks": result.tasks,
            "task_scores": result.task_scores.ravel(),
            "top": result.top,
            "model_version": result.model_version,
            "cache": cache_fields(result.cache),
            "timings": result.timings,
            "history_len": result.history_len,
            "unknown": result.unknown,
            "stale": result.stale,
        }
    )


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


def model_reply(model: ModelInfo) -> bytes:
    """A ModelReply as JSON."""
    return dump(model)


def models_reply(models: Sequence[ModelInfo]) -> bytes:
    """A ModelsReply as JSON."""
    return dump({"models": models})


def error_reply(code: str, message: str, field: str | None) -> bytes:
    """An ErrorReply as JSON."""
    return dump({"error": {"code": code, "message": message, "field": field}})


def dump(content: object) -> bytes:
    """JSON of dataclasses and contiguous arrays too."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)

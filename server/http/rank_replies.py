"""JSON bodies of the answers that have scores or interests, as /openapi.json describes them."""

from typing import Literal

from pydantic import ConfigDict, Field

from mfalcon.types import RerankSkipped
from server.http.fields import Body, Int64, Uint32, Uint64, Version
from server.http.replies import ErrorDetail, FailureReply


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


class RankOutcomeReply(Body):
    """What became of a rank: one of the two."""

    ranked: RankReply | None = None
    failure: FailureReply | None = None


class RankBatchReply(Body):
    """What became of each rank, in their order."""

    outcomes: list[RankOutcomeReply]


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

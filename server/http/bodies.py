"""JSON bodies of ranks and of questions for interests, one class each. Their parts are in `server/http/fields.py`."""

from collections.abc import Sequence
from typing import Annotated, cast

from pydantic import (
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import core_schema

from mfalcon.errors import InvalidInput
from mfalcon.interests import InterestsRequest
from mfalcon.types import (
    DenseFeatures,
    Events,
    Floats,
    Ids,
    ModelRank,
    RankRequest,
    Rerank,
    Retrieve,
    Returns,
    no_events,
    no_ids,
)
from server import limits
from server.http.fields import (
    DENSE_PER_CANDIDATE,
    SIGNS_OF_A_CANDIDATE,
    SIGNS_OF_AN_EVENT,
    Body,
    EventBody,
    Float32,
    Int64,
    ItemId,
    Reading,
    RequestBody,
    Uint32,
    check_context,
    check_names,
    check_num_conditions,
    each_alone,
    known_fields,
    list_as_array,
    only_known,
    to_events,
    to_floats,
    to_ids,
)
from server.limits import MAX_CONDITIONS, MAX_CONTEXT_ENTRIES, MAX_DENSE_FEATURES, RANKED_TOGETHER, Limits


class RerankBody(Body):
    """A wish for a top of candidates that are less alike."""

    method: str = Field(description="mmr, dpp, msd, or llm, a language model if the server has one.")
    strength: Float32 = Field(description="From 0, the order of the scores, to 1, diversity alone; 0 for llm.")
    depth: Uint32 = Field(
        default=0, description="How many of the best-scored candidates may change their places; 0 for 200, llm 20."
    )
    tail_weight: Float32 = Field(
        default=0.0,
        description="From 0 to 1, how much items that were seldom acted on are lifted; for a model that counts_items.",
    )

    def wish(self) -> Rerank:
        """The same, its values not yet checked against limits."""
        return Rerank(self.method, self.strength, self.depth, self.tail_weight)


class DenseBody(Body):
    """Numbers of each candidate that the model reads beside its id."""

    names: Annotated[list[str], FailFast(), BeforeValidator(check_names)] = Field(
        description="Some of the model's dense_features, in any order."
    )
    values: Annotated[
        Floats,
        list_as_array(
            Float32,
            to_floats,
            lambda values, most: limits.check_num_values(values, DENSE_PER_CANDIDATE * most.max_candidates),
            within=("features",),
        ),
    ] = Field(description="Feature f of candidate c is at c * len(names) + f.")


class RetrieveBody(Body):
    """What proposes the candidates of a request."""

    conditions: Annotated[list[str], FailFast(), BeforeValidator(check_num_conditions)] = Field(
        description="Some of the model's conditions: the nearest items of each in turn, each item once."
    )
    k: Uint32 = Field(description="Most candidates.")
    model: str = Field(default="", description="A model that has conditions; empty is the first one of those.")

    def wish(self) -> Retrieve:
        """The same, its values not yet checked against limits."""
        return Retrieve(self.model, tuple(self.conditions), self.k)


class RankBody(RequestBody):
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
    candidates: Annotated[
        Ids, list_as_array(ItemId, to_ids, lambda ids, most: limits.check_candidates(ids, most.max_candidates))
    ] = Field(
        default_factory=no_ids,
        description="Item ids, numbers or text, any order, duplicates allowed; none with `retrieve`.",
        json_schema_extra={"default": []},
    )
    top_k: Uint32 = Field(default=0, description="How many positions `top` names; 0 for none.")
    request_time_ms: Int64 = Field(default=0, description="The time that the model sees as now; 0 is the server's.")
    recent_events: Annotated[
        Events,
        list_as_array(
            EventBody,
            to_events,
            lambda events, most: limits.check_num_events("recent_events", events, 0, most.max_recent_events),
        ),
    ] = Field(
        default_factory=no_events,
        description="Events after the stored history that this request alone sees, in time order.",
        json_schema_extra={"default": []},
    )
    context: Annotated[dict[str, Int64], BeforeValidator(check_context)] = Field(
        default={}, description="Request-context features by name."
    )
    features: Annotated[DenseBody | None, BeforeValidator(only_known(DenseBody))] = Field(
        default=None, description="Numbers of the candidates, for a model that reads any."
    )
    model: str = Field(default="", description="The model's name; empty is the default one.")
    allow_partial: bool = Field(
        default=False,
        description="Where time is short the scores of the first candidates are welcome, as many as `num_scored` says.",
    )
    recompute: bool = Field(
        default=False,
        description="Encode the history anew; no KV state is used or changed, and the scores are the same.",
    )
    rerank: Annotated[RerankBody | None, BeforeValidator(only_known(RerankBody))] = Field(
        default=None, description="Another order of `top`; without it that is the order of the scores."
    )
    retrieve: Annotated[RetrieveBody | None, BeforeValidator(only_known(RetrieveBody))] = Field(
        default=None, description="Rank what a model with conditions proposes; the answer says which items they were."
    )

    returns: str = Field(
        default="both",
        alias="return",
        description="What is returned: both, scores (no top), or top: `scores`, `task_scores`, `unknown` and `failed` "
        "are then of the candidates in `top` alone, in its order.",
    )
    exclude_unknown: bool = Field(
        default=False, description="Keep candidates that the model does not know out of `top`; their scores stay."
    )
    exclude_seen: bool = Field(
        default=False, description="Keep items of the user's history and of recent_events out of `top`."
    )

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of candidates, names of features, events, context, and texts that hold nothing else."""
        texts = 2 * most.max_user_id_bytes + MAX_DENSE_FEATURES + 2 * MAX_CONDITIONS
        candidates = SIGNS_OF_A_CANDIDATE * most.max_candidates
        return candidates + SIGNS_OF_AN_EVENT * most.max_recent_events + 2 * MAX_CONTEXT_ENTRIES + texts

    @classmethod
    def num_commas(cls, most: Limits) -> int:
        """Of the candidates' features."""
        return DENSE_PER_CANDIDATE * most.max_candidates

    def request(self) -> RankRequest:
        """The request, its values not yet checked against limits."""
        return RankRequest(
            user_id=self.user_id,
            candidates=self.candidates,
            top_k=self.top_k,
            request_time_ms=self.request_time_ms,
            recent_events=self.recent_events,
            context=self.context,
            allow_partial=self.allow_partial,
            recompute=self.recompute,
            rerank=self.rerank.wish() if self.rerank else None,
            dense=DenseFeatures(tuple(self.features.names), self.features.values) if self.features else DenseFeatures(),
            retrieve=self.retrieve.wish() if self.retrieve else None,
            returns=cast(Returns, self.returns or "both"),
            exclude_unknown=self.exclude_unknown,
            exclude_seen=self.exclude_seen,
        )


def each_rank(
    ranks: object, check: ValidatorFunctionWrapHandler, info: ValidationInfo[Reading | None]
) -> Sequence[ModelRank | InvalidInput]:
    """The ranks of a batch (`each_alone`). Their number, and that of their candidates, is checked first."""
    if not isinstance(ranks, list) or info.context is None:
        check(ranks)  # which refuses it
        return []
    limits.check_num_ranks(ranks, info.context.limits)
    candidates = [part["candidates"] for part in ranks if isinstance(part, dict) and "candidates" in part]
    num_candidates = sum(len(each) for each in candidates if isinstance(each, list))
    limits.check_ranked_together(num_candidates, info.context.limits)

    def read(part: object) -> ModelRank:
        body = RankBody.model_validate(part, context=info.context)
        return ModelRank(body.request(), body.model)

    return each_alone(ranks, known_fields(RankBody), read)


class RankBatchBody(RequestBody):
    """Candidates to score for several users."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {"user_id": "186", "candidates": [50, 181, 258], "top_k": 2},
                        {"user_id": "187", "candidates": [7, 50], "top_k": 1, "return": "top"},
                    ]
                }
            ]
        }
    )

    requests: Annotated[
        Sequence[ModelRank | InvalidInput],
        GetPydanticSchema(
            lambda source, schema_of: core_schema.with_info_wrap_validator_function(
                each_rank, schema_of(list[RankBody])
            )
        ),
    ]

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of four times the longest lists of one, and of the names around each rank."""
        return RANKED_TOGETHER * RankBody.num_signs(most) + 4 * SIGNS_OF_AN_EVENT * most.max_ranks_per_batch

    @classmethod
    def num_commas(cls, most: Limits) -> int:
        """Of the candidates' features."""
        return RankBody.num_commas(most)


class InterestsBody(RequestBody):
    """Conditions to ask of a user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "186", "conditions": ["like", "like:Comedy"], "top_items": 10}]}
    )

    user_id: str
    conditions: Annotated[list[str], FailFast(), BeforeValidator(check_num_conditions)] = Field(
        default=[], description="Some of the model's conditions, any order, duplicates allowed; none for all of them."
    )
    top_items: Uint32 = Field(default=0, description="How many of the nearest items to tell of each; 0 for none.")
    request_time_ms: Int64 = Field(default=0, description="The time that the model sees as now; 0 is the server's.")
    recent_events: Annotated[
        Events,
        list_as_array(
            EventBody,
            to_events,
            lambda events, most: limits.check_num_events("recent_events", events, 0, most.max_recent_events),
        ),
    ] = Field(
        default_factory=no_events,
        description="Events after the stored history that this request alone sees, in time order.",
        json_schema_extra={"default": []},
    )
    model: str = Field(default="", description="A model that has conditions; empty is the first one of those.")

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """Of events and conditions, and texts that hold nothing else."""
        return SIGNS_OF_AN_EVENT * most.max_recent_events + 2 * MAX_CONDITIONS + 2 * most.max_user_id_bytes

    def request(self) -> InterestsRequest:
        """The request, its values not yet checked against limits."""
        asked = self.user_id, tuple(self.conditions), self.top_items
        return InterestsRequest(*asked, self.request_time_ms, self.recent_events)

"""JSON bodies of answers as /openapi.json describes them, but for those in rank_replies.py; codec.py writes them."""

from typing import Literal

from pydantic import Field

from server.http.fields import Body, Int64, Uint32, Uint64, Version
from server.outcome import Outcome


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


class FailureReply(Body):
    """How a part of a call has failed."""

    code: str = Field(description="Name of the gRPC status that it would have ended with as a call of its own.")
    message: str
    field: str | None = Field(description="The field that is wrong, if one is.")
    outcome: Outcome = Field(description="Whether it may have happened all the same.")
    retry_after_ms: Uint32 | None = Field(default=None, description="When the same would have been accepted.")
    history_len: Uint64 | None = Field(default=None, description="Of FAILED_PRECONDITION: what the history is.")
    history_version: Version | None = None


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


class AppendEventsReply(Body):
    """The events are acknowledged. All that are named by no list below came last, as they are."""

    history_len: Uint64 = Field(description="Events acknowledged for this user, these included.")
    version: Version = Field(description="Of the history at that length.")
    clamped: list[Uint32] = Field(description="Positions of late events that were given the newest one's time.")
    inserted: list[Uint32] = Field(description="Positions of late events that went where their time belongs.")
    discarded: list[Uint32] = Field(description="Positions of events older than all that is kept: they are not kept.")
    was_written: bool = Field(description="An earlier append of this append_id had done this; it is told again.")
    lost_events: Uint64 = Field(description="Events once acknowledged that the log has lost, as this replica knows.")


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


class StatusReply(Body):
    """The state of the server."""

    status: str

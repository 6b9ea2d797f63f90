from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UpdateItemsRequest(_message.Message):
    __slots__ = ("model", "model_version", "number", "replaces", "item_ids", "vectors", "biases", "side", "last")
    class SideEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: SideValues
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[SideValues, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    BIASES_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    model: str
    model_version: str
    number: int
    replaces: bool
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    vectors: _containers.RepeatedScalarFieldContainer[float]
    biases: _containers.RepeatedScalarFieldContainer[float]
    side: _containers.MessageMap[str, SideValues]
    last: bool
    def __init__(self, model: _Optional[str] = ..., model_version: _Optional[str] = ..., number: _Optional[int] = ..., replaces: _Optional[bool] = ..., item_ids: _Optional[_Iterable[int]] = ..., vectors: _Optional[_Iterable[float]] = ..., biases: _Optional[_Iterable[float]] = ..., side: _Optional[_Mapping[str, SideValues]] = ..., last: _Optional[bool] = ...) -> None: ...

class SideValues(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class UpdateItemsResponse(_message.Message):
    __slots__ = ("model", "items_version", "number", "num_rows", "num_items")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_ITEMS_FIELD_NUMBER: _ClassVar[int]
    model: str
    items_version: str
    number: int
    num_rows: int
    num_items: int
    def __init__(self, model: _Optional[str] = ..., items_version: _Optional[str] = ..., number: _Optional[int] = ..., num_rows: _Optional[int] = ..., num_items: _Optional[int] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ("model", "checkpoint")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    model: str
    checkpoint: str
    def __init__(self, model: _Optional[str] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("model", "old_version", "version", "took_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OLD_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOOK_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    old_version: str
    version: str
    took_ms: int
    def __init__(self, model: _Optional[str] = ..., old_version: _Optional[str] = ..., version: _Optional[str] = ..., took_ms: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("item_id", "actions", "value", "time_ms", "text_id")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    TEXT_ID_FIELD_NUMBER: _ClassVar[int]
    item_id: int
    actions: int
    value: float
    time_ms: int
    text_id: str
    def __init__(self, item_id: _Optional[int] = ..., actions: _Optional[int] = ..., value: _Optional[float] = ..., time_ms: _Optional[int] = ..., text_id: _Optional[str] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("user_id", "candidates", "top_k", "request_time_ms", "recent_events", "context", "model", "allow_partial", "features", "rerank", "recompute", "retrieve", "candidate_ids", "exclude_unknown", "exclude_seen")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    RECENT_EVENTS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALLOW_PARTIAL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    RETRIEVE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    candidates: _containers.RepeatedScalarFieldContainer[int]
    top_k: int
    request_time_ms: int
    recent_events: _containers.RepeatedCompositeFieldContainer[Event]
    context: _containers.ScalarMap[str, int]
    model: str
    allow_partial: bool
    features: DenseFeatures
    rerank: Rerank
    recompute: bool
    retrieve: Retrieve
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude_unknown: bool
    exclude_seen: bool
    def __init__(self, user_id: _Optional[str] = ..., candidates: _Optional[_Iterable[int]] = ..., top_k: _Optional[int] = ..., request_time_ms: _Optional[int] = ..., recent_events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., context: _Optional[_Mapping[str, int]] = ..., model: _Optional[str] = ..., allow_partial: _Optional[bool] = ..., features: _Optional[_Union[DenseFeatures, _Mapping]] = ..., rerank: _Optional[_Union[Rerank, _Mapping]] = ..., recompute: _Optional[bool] = ..., retrieve: _Optional[_Union[Retrieve, _Mapping]] = ..., candidate_ids: _Optional[_Iterable[str]] = ..., exclude_unknown: _Optional[bool] = ..., exclude_seen: _Optional[bool] = ..., **kwargs) -> None: ...

class RankBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RankRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RankRequest, _Mapping]]] = ...) -> None: ...

class RankBatchResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[RankOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[RankOutcome, _Mapping]]] = ...) -> None: ...

class RankPart(_message.Message):
    __slots__ = ("first", "scores", "task_scores", "unknown", "failed", "tasks", "model_version", "answer")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TASK_SCORES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    first: int
    scores: _containers.RepeatedScalarFieldContainer[float]
    task_scores: _containers.RepeatedScalarFieldContainer[float]
    unknown: _containers.RepeatedScalarFieldContainer[int]
    failed: _containers.RepeatedScalarFieldContainer[int]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    model_version: str
    answer: RankResponse
    def __init__(self, first: _Optional[int] = ..., scores: _Optional[_Iterable[float]] = ..., task_scores: _Optional[_Iterable[float]] = ..., unknown: _Optional[_Iterable[int]] = ..., failed: _Optional[_Iterable[int]] = ..., tasks: _Optional[_Iterable[str]] = ..., model_version: _Optional[str] = ..., answer: _Optional[_Union[RankResponse, _Mapping]] = ...) -> None: ...

class RankOutcome(_message.Message):
    __slots__ = ("ranked", "failure")
    RANKED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ranked: RankResponse
    failure: Failure
    def __init__(self, ranked: _Optional[_Union[RankResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Retrieve(_message.Message):
    __slots__ = ("conditions", "k", "model")
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedScalarFieldContainer[str]
    k: int
    model: str
    def __init__(self, conditions: _Optional[_Iterable[str]] = ..., k: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class InterestsRequest(_message.Message):
    __slots__ = ("user_id", "conditions", "recent_events", "request_time_ms", "top_items", "model")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    RECENT_EVENTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    TOP_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    conditions: _containers.RepeatedScalarFieldContainer[str]
    recent_events: _containers.RepeatedCompositeFieldContainer[Event]
    request_time_ms: int
    top_items: int
    model: str
    def __init__(self, user_id: _Optional[str] = ..., conditions: _Optional[_Iterable[str]] = ..., recent_events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., request_time_ms: _Optional[int] = ..., top_items: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class NearestItems(_message.Message):
    __slots__ = ("item_ids", "scores", "text_ids")
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TEXT_IDS_FIELD_NUMBER: _ClassVar[int]
    item_ids: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    text_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, item_ids: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., text_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class InterestsResponse(_message.Message):
    __slots__ = ("conditions", "vectors", "dim", "nearest", "model_version", "cache", "timings", "history_len", "history_version", "stale", "computed_ahead")
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    NEAREST_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LEN_FIELD_NUMBER: _ClassVar[int]
    HISTORY_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_AHEAD_FIELD_NUMBER: _ClassVar[int]
    conditions: _containers.RepeatedScalarFieldContainer[str]
    vectors: _containers.RepeatedScalarFieldContainer[float]
    dim: int
    nearest: _containers.RepeatedCompositeFieldContainer[NearestItems]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    history_version: bytes
    stale: bool
    computed_ahead: bool
    def __init__(self, conditions: _Optional[_Iterable[str]] = ..., vectors: _Optional[_Iterable[float]] = ..., dim: _Optional[int] = ..., nearest: _Optional[_Iterable[_Union[NearestItems, _Mapping]]] = ..., model_version: _Optional[str] = ..., cache: _Optional[_Union[CacheInfo, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., history_len: _Optional[int] = ..., history_version: _Optional[bytes] = ..., stale: _Optional[bool] = ..., computed_ahead: _Optional[bool] = ...) -> None: ...

class DenseFeatures(_message.Message):
    __slots__ = ("names", "values")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, names: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Rerank(_message.Message):
    __slots__ = ("method", "strength", "depth", "tail_weight")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    TAIL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    method: str
    strength: float
    depth: int
    tail_weight: float
    def __init__(self, method: _Optional[str] = ..., strength: _Optional[float] = ..., depth: _Optional[int] = ..., tail_weight: _Optional[float] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_us", "state_us", "encode_us", "score_us", "total_us", "rerank_us", "merge_us", "features_us")
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    STATE_US_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    SCORE_US_FIELD_NUMBER: _ClassVar[int]
    TOTAL_US_FIELD_NUMBER: _ClassVar[int]
    RERANK_US_FIELD_NUMBER: _ClassVar[int]
    MERGE_US_FIELD_NUMBER: _ClassVar[int]
    FEATURES_US_FIELD_NUMBER: _ClassVar[int]
    queue_us: int
    state_us: int
    encode_us: int
    score_us: int
    total_us: int
    rerank_us: int
    merge_us: int
    features_us: int
    def __init__(self, queue_us: _Optional[int] = ..., state_us: _Optional[int] = ..., encode_us: _Optional[int] = ..., score_us: _Optional[int] = ..., total_us: _Optional[int] = ..., rerank_us: _Optional[int] = ..., merge_us: _Optional[int] = ..., features_us: _Optional[int] = ...) -> None: ...

class CacheInfo(_message.Message):
    __slots__ = ("source", "reused_tokens", "encoded_tokens")
    class Source(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NONE: _ClassVar[CacheInfo.Source]
        GPU: _ClassVar[CacheInfo.Source]
        HOST: _ClassVar[CacheInfo.Source]
        REDIS: _ClassVar[CacheInfo.Source]
    NONE: CacheInfo.Source
    GPU: CacheInfo.Source
    HOST: CacheInfo.Source
    REDIS: CacheInfo.Source
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    source: CacheInfo.Source
    reused_tokens: int
    encoded_tokens: int
    def __init__(self, source: _Optional[_Union[CacheInfo.Source, str]] = ..., reused_tokens: _Optional[int] = ..., encoded_tokens: _Optional[int] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("scores", "tasks", "task_scores", "top", "model_version", "cache", "timings", "history_len", "unknown", "stale", "num_scored", "failed", "rerank_skipped", "counters_version", "counters_stale", "items_version", "history_version", "members", "partial_merge", "candidates", "candidate_ids", "graph_version")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TASK_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LEN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    NUM_SCORED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RERANK_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_STALE_FIELD_NUMBER: _ClassVar[int]
    ITEMS_VERSION_FIELD_NUMBER: _ClassVar[int]
    HISTORY_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_MERGE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_IDS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_VERSION_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    task_scores: _containers.RepeatedScalarFieldContainer[float]
    top: _containers.RepeatedScalarFieldContainer[int]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    unknown: _containers.RepeatedScalarFieldContainer[int]
    stale: bool
    num_scored: int
    failed: _containers.RepeatedScalarFieldContainer[int]
    rerank_skipped: str
    counters_version: int
    counters_stale: bool
    items_version: str
    history_version: bytes
    members: _containers.RepeatedCompositeFieldContainer[MemberResult]
    partial_merge: bool
    candidates: _containers.RepeatedScalarFieldContainer[int]
    candidate_ids: _containers.RepeatedScalarFieldContainer[str]
    graph_version: str
    def __init__(self, scores: _Optional[_Iterable[float]] = ..., tasks: _Optional[_Iterable[str]] = ..., task_scores: _Optional[_Iterable[float]] = ..., top: _Optional[_Iterable[int]] = ..., model_version: _Optional[str] = ..., cache: _Optional[_Union[CacheInfo, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., history_len: _Optional[int] = ..., unknown: _Optional[_Iterable[int]] = ..., stale: _Optional[bool] = ..., num_scored: _Optional[int] = ..., failed: _Optional[_Iterable[int]] = ..., rerank_skipped: _Optional[str] = ..., counters_version: _Optional[int] = ..., counters_stale: _Optional[bool] = ..., items_version: _Optional[str] = ..., history_version: _Optional[bytes] = ..., members: _Optional[_Iterable[_Union[MemberResult, _Mapping]]] = ..., partial_merge: _Optional[bool] = ..., candidates: _Optional[_Iterable[int]] = ..., candidate_ids: _Optional[_Iterable[str]] = ..., graph_version: _Optional[str] = ...) -> None: ...

class MemberResult(_message.Message):
    __slots__ = ("model", "address", "weight", "version", "arrived", "cache", "timings", "unknown", "failed", "error", "took_us", "items_version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TOOK_US_FIELD_NUMBER: _ClassVar[int]
    ITEMS_VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    address: str
    weight: float
    version: str
    arrived: bool
    cache: CacheInfo
    timings: Timings
    unknown: _containers.RepeatedScalarFieldContainer[int]
    failed: _containers.RepeatedScalarFieldContainer[int]
    error: str
    took_us: int
    items_version: str
    def __init__(self, model: _Optional[str] = ..., address: _Optional[str] = ..., weight: _Optional[float] = ..., version: _Optional[str] = ..., arrived: _Optional[bool] = ..., cache: _Optional[_Union[CacheInfo, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., unknown: _Optional[_Iterable[int]] = ..., failed: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ..., took_us: _Optional[int] = ..., items_version: _Optional[str] = ...) -> None: ...

class AppendEventsRequest(_message.Message):
    __slots__ = ("user_id", "events", "expected_len", "expected_version", "append_id", "late_events")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_LEN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    APPEND_ID_FIELD_NUMBER: _ClassVar[int]
    LATE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    events: _containers.RepeatedCompositeFieldContainer[Event]
    expected_len: int
    expected_version: bytes
    append_id: str
    late_events: str
    def __init__(self, user_id: _Optional[str] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., expected_len: _Optional[int] = ..., expected_version: _Optional[bytes] = ..., append_id: _Optional[str] = ..., late_events: _Optional[str] = ...) -> None: ...

class AppendEventsResponse(_message.Message):
    __slots__ = ("history_len", "version", "clamped", "inserted", "discarded", "was_written", "lost_events")
    HISTORY_LEN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLAMPED_FIELD_NUMBER: _ClassVar[int]
    INSERTED_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    WAS_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    LOST_EVENTS_FIELD_NUMBER: _ClassVar[int]
    history_len: int
    version: bytes
    clamped: _containers.RepeatedScalarFieldContainer[int]
    inserted: _containers.RepeatedScalarFieldContainer[int]
    discarded: _containers.RepeatedScalarFieldContainer[int]
    was_written: bool
    lost_events: int
    def __init__(self, history_len: _Optional[int] = ..., version: _Optional[bytes] = ..., clamped: _Optional[_Iterable[int]] = ..., inserted: _Optional[_Iterable[int]] = ..., discarded: _Optional[_Iterable[int]] = ..., was_written: _Optional[bool] = ..., lost_events: _Optional[int] = ...) -> None: ...

class AppendBatchRequest(_message.Message):
    __slots__ = ("appends",)
    APPENDS_FIELD_NUMBER: _ClassVar[int]
    appends: _containers.RepeatedCompositeFieldContainer[AppendEventsRequest]
    def __init__(self, appends: _Optional[_Iterable[_Union[AppendEventsRequest, _Mapping]]] = ...) -> None: ...

class AppendBatchResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[AppendOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[AppendOutcome, _Mapping]]] = ...) -> None: ...

class AppendOutcome(_message.Message):
    __slots__ = ("appended", "failure")
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    appended: AppendEventsResponse
    failure: Failure
    def __init__(self, appended: _Optional[_Union[AppendEventsResponse, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "outcome_unknown", "retry_after_ms", "history_len", "history_version")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LEN_FIELD_NUMBER: _ClassVar[int]
    HISTORY_VERSION_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    outcome_unknown: bool
    retry_after_ms: int
    history_len: int
    history_version: bytes
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., outcome_unknown: _Optional[bool] = ..., retry_after_ms: _Optional[int] = ..., history_len: _Optional[int] = ..., history_version: _Optional[bytes] = ...) -> None: ...

class GetHistoryRequest(_message.Message):
    __slots__ = ("user_id", "first", "limit", "expected_version", "with_states")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    WITH_STATES_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    first: int
    limit: int
    expected_version: bytes
    with_states: bool
    def __init__(self, user_id: _Optional[str] = ..., first: _Optional[int] = ..., limit: _Optional[int] = ..., expected_version: _Optional[bytes] = ..., with_states: _Optional[bool] = ...) -> None: ...

class GetHistoryResponse(_message.Message):
    __slots__ = ("events", "first", "next_first", "history_len", "base", "version", "page_version", "stale", "states")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIRST_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LEN_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAGE_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALE_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    first: int
    next_first: int
    history_len: int
    base: int
    version: bytes
    page_version: bytes
    stale: bool
    states: _containers.RepeatedCompositeFieldContainer[KeptState]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., first: _Optional[int] = ..., next_first: _Optional[int] = ..., history_len: _Optional[int] = ..., base: _Optional[int] = ..., version: _Optional[bytes] = ..., page_version: _Optional[bytes] = ..., stale: _Optional[bool] = ..., states: _Optional[_Iterable[_Union[KeptState, _Mapping]]] = ...) -> None: ...

class KeptState(_message.Message):
    __slots__ = ("model", "tier", "first_event", "num_events", "num_tokens", "num_bytes", "fits")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    FIRST_EVENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EVENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    model: str
    tier: CacheInfo.Source
    first_event: int
    num_events: int
    num_tokens: int
    num_bytes: int
    fits: bool
    def __init__(self, model: _Optional[str] = ..., tier: _Optional[_Union[CacheInfo.Source, str]] = ..., first_event: _Optional[int] = ..., num_events: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_bytes: _Optional[int] = ..., fits: _Optional[bool] = ...) -> None: ...

class PrefillRequest(_message.Message):
    __slots__ = ("user_id", "model", "conditions", "request_time_ms")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    model: str
    conditions: _containers.RepeatedScalarFieldContainer[str]
    request_time_ms: int
    def __init__(self, user_id: _Optional[str] = ..., model: _Optional[str] = ..., conditions: _Optional[_Iterable[str]] = ..., request_time_ms: _Optional[int] = ...) -> None: ...

class DeleteUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class DeleteUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[GetModelResponse]
    def __init__(self, models: _Optional[_Iterable[_Union[GetModelResponse, _Mapping]]] = ...) -> None: ...

class ContextFeature(_message.Message):
    __slots__ = ("name", "num_values", "values", "derived")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_VALUES_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    DERIVED_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_values: int
    values: _containers.RepeatedScalarFieldContainer[str]
    derived: bool
    def __init__(self, name: _Optional[str] = ..., num_values: _Optional[int] = ..., values: _Optional[_Iterable[str]] = ..., derived: _Optional[bool] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("name", "version", "tasks", "context_features", "max_history", "max_candidates", "prefix_stable", "actions", "architecture", "backend", "dense_features", "counters", "ensemble", "task_infos", "reads_last_events", "counts_items", "items_version", "conditions", "item_ids", "graph_version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FEATURES_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_STABLE_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DENSE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_FIELD_NUMBER: _ClassVar[int]
    TASK_INFOS_FIELD_NUMBER: _ClassVar[int]
    READS_LAST_EVENTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_ITEMS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    context_features: _containers.RepeatedCompositeFieldContainer[ContextFeature]
    max_history: int
    max_candidates: int
    prefix_stable: bool
    actions: _containers.RepeatedScalarFieldContainer[str]
    architecture: str
    backend: str
    dense_features: _containers.RepeatedScalarFieldContainer[str]
    counters: _containers.RepeatedScalarFieldContainer[str]
    ensemble: Ensemble
    task_infos: _containers.RepeatedCompositeFieldContainer[TaskInfo]
    reads_last_events: bool
    counts_items: bool
    items_version: str
    conditions: _containers.RepeatedScalarFieldContainer[str]
    item_ids: str
    graph_version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ..., context_features: _Optional[_Iterable[_Union[ContextFeature, _Mapping]]] = ..., max_history: _Optional[int] = ..., max_candidates: _Optional[int] = ..., prefix_stable: _Optional[bool] = ..., actions: _Optional[_Iterable[str]] = ..., architecture: _Optional[str] = ..., backend: _Optional[str] = ..., dense_features: _Optional[_Iterable[str]] = ..., counters: _Optional[_Iterable[str]] = ..., ensemble: _Optional[_Union[Ensemble, _Mapping]] = ..., task_infos: _Optional[_Iterable[_Union[TaskInfo, _Mapping]]] = ..., reads_last_events: _Optional[bool] = ..., counts_items: _Optional[bool] = ..., items_version: _Optional[str] = ..., conditions: _Optional[_Iterable[str]] = ..., item_ids: _Optional[str] = ..., graph_version: _Optional[str] = ...) -> None: ...

class TaskInfo(_message.Message):
    __slots__ = ("name", "kind", "weight")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    weight: float
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class Ensemble(_message.Message):
    __slots__ = ("merge", "budget_ms", "min_members", "members")
    MERGE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    merge: str
    budget_ms: int
    min_members: int
    members: _containers.RepeatedCompositeFieldContainer[EnsembleMember]
    def __init__(self, merge: _Optional[str] = ..., budget_ms: _Optional[int] = ..., min_members: _Optional[int] = ..., members: _Optional[_Iterable[_Union[EnsembleMember, _Mapping]]] = ...) -> None: ...

class EnsembleMember(_message.Message):
    __slots__ = ("model", "address", "weight", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    address: str
    weight: float
    version: str
    def __init__(self, model: _Optional[str] = ..., address: _Optional[str] = ..., weight: _Optional[float] = ..., version: _Optional[str] = ...) -> None: ...

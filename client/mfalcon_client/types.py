"""What goes into a call and what comes out of it: numpy arrays in frozen dataclasses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

EVENT_DTYPE = np.dtype([("item_id", "<i8"), ("actions", "<u4"), ("value", "<f4"), ("time_ms", "<i8")])
"""One event: raw item id, bitmask over the model's actions, value (a rating, say), milliseconds since 1970 (UTC)."""


@dataclass(frozen=True, slots=True)
class Event:
    """One user action on one item. item_id: a number of 64 bits, or text. actions: bit i is the model's action i.
    time_ms: milliseconds since 1970 (UTC).
    """

    item_id: int | str
    time_ms: int
    actions: int = 0
    value: float = 0.0


Events = NDArray[np.void] | Sequence[Event]
"""[num_events] in time order: an array of `EVENT_DTYPE`, or `Event`s."""

Ids = NDArray[np.signedinteger] | NDArray[np.unsignedinteger] | NDArray[np.str_] | Sequence[int] | Sequence[str]
"""[num_candidates] raw item ids: any array of integers that fit into 64 bits with a sign, int64 at best; or numbers, or
texts. A text costs a hash (`item_id`), some two thirds of a microsecond: who ranks the same items again keeps the
numbers.
"""


Returns = Literal["both", "scores", "top"]
"""What of an answer is sent: all scores and the top, the scores alone, or the top with its scores."""


@dataclass(frozen=True, slots=True)
class Append:
    """Events for a user's history, as one of several appends in a call; see `Client.append_events`."""

    user_id: str
    events: Events
    expected_len: int | None = None
    expected_version: bytes | None = None
    append_id: str = ""
    late_events: str = ""


@dataclass(frozen=True, slots=True)
class Rerank:
    """A wish for a top of candidates that are less alike; the scores stay as they are.

    method: "mmr", "dpp", "msd", or "llm", a language model if the server has one. strength: from 0, the order of the
    scores, to 1, diversity alone; 0 for "llm". depth: how many of the best-scored candidates may change their places, 0
    for the server's default. tail_weight: from 0 to 1, how much items that were seldom acted on are lifted among these,
    for a model that `counts_items`.
    """

    method: str
    strength: float
    depth: int = 0
    tail_weight: float = 0.0


Features = Mapping[str, NDArray[np.floating] | NDArray[np.integer] | Sequence[float]]
"""Numbers of the candidates by the name that the model has for them, [num_candidates] each."""


@dataclass(frozen=True, slots=True)
class Rank:
    """Candidates to score for a user, as one of several ranks in a call; see `Client.rank`."""

    user_id: str
    candidates: Ids = ()
    top_k: int = 0
    request_time_ms: int = 0
    recent_events: Events = ()
    context: Mapping[str, int] = field(default_factory=dict)
    features: Features = field(default_factory=dict)
    model: str = ""
    allow_partial: bool = False
    rerank: Rerank | None = None
    recompute: bool = False
    retrieve: "Retrieve | None" = None
    returns: Returns = "both"
    exclude_unknown: bool = False
    exclude_seen: bool = False


class CacheSource(Enum):
    """The tier in which the KV state of a request was found."""

    NONE = 0
    GPU = 1
    HOST = 2
    REDIS = 3


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """What a request reused of the cached KV state and what it had to encode, in tokens."""

    source: CacheSource
    reused_tokens: int
    encoded_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went in the server, in microseconds. rerank_us, merge_us: 0 where no reranking was
    asked, and for one model. Of an ensemble the first four are those of the member that took longest.
    features_us: making dense features and counters of the candidates.
    """

    queue_us: int
    state_us: int
    encode_us: int
    score_us: int
    total_us: int
    rerank_us: int = 0
    merge_us: int = 0
    features_us: int = 0


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What a member of an ensemble gave to an answer.

    address: of the replica that was asked, "" for the one that answers. arrived: its scores are in the merge; version,
    cache, timings, unknown and failed are empty otherwise. unknown, failed: int64, positions of candidates that it does
    not know or has no score for; they are merged from the others. error: why it did not arrive, behind a word for it:
    late, overloaded, away, disagrees, outdated or failed. took_us: until it arrived, or was given up. items_version: as
    of a `Ranking`.
    """

    model: str
    address: str
    weight: float
    version: str
    arrived: bool
    cache: CacheInfo
    timings: Timings
    unknown: NDArray[np.int64]
    failed: NDArray[np.int64]
    error: str
    took_us: int
    items_version: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The scores of the first `num_scored` candidates: of all unless the call allowed fewer. Arrays are read-only.

    scores: float32 [num_scored], aligned with the candidates. task_scores: float32 [num_tasks, num_scored]. Where the
    call wanted the top alone both are of that, in its order, and `unknown` and `failed` name what is among it.
    top: int64 [min(top_k, num_scored)], positions of the best, best first; fewer where the call excludes some.
    unknown: int64, positions of candidates that the model does not know.
    failed: int64, positions of candidates for which it gives no finite number; their scores are the lowest float32.
    history_len: events of the user that the server has acknowledged. history_version: of these, see `Appended`.
    stale: the event log could not be asked, newer events may exist.
    rerank_skipped: why `top` is in the order of the scores although `rerank` was given, "" if it is not: "late" or
    "failed"; of a language model also "off", "busy", "unavailable", "refused" or "no_permutation".
    members: of an ensemble, all of them in its order; none for one model. partial_merge: some member did not arrive, or
    has no score for some candidate: the scores are right, and not those of all members.
    counters_version: of the counters of items that the model read, 0 if it reads none.
    counters_stale: acknowledged events may be missing from them.
    items_version: of the item table that the scores are of: the number of the last delta in it, and a hash of all of
    them; "" of the checkpoint's own rows, and of an ensemble.
    graph_version: of the graph vectors that they are of: their number and a hash; "" of the checkpoint's own, of a
    model that reads none, and of an ensemble.
    candidates: int64 [num_scored], those that were retrieved, which all else is aligned with; empty without `retrieve`.
    candidate_texts: of each of these, "" where it has none; empty where ids are integers.
    """

    scores: NDArray[np.float32]
    tasks: tuple[str, ...]
    task_scores: NDArray[np.float32]
    top: NDArray[np.int64]
    unknown: NDArray[np.int64]
    failed: NDArray[np.int64]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    stale: bool
    rerank_skipped: str = ""
    members: tuple[MemberResult, ...] = ()
    partial_merge: bool = False
    counters_version: int = 0
    counters_stale: bool = False
    history_version: bytes = b""
    items_version: str = ""
    graph_version: str = ""
    candidates: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    candidate_texts: tuple[str, ...] = ()
    num_scored: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """Scores of the candidates [first, first + num) of a stream. Arrays are read-only.

    scores: float32 [num]. task_scores: float32 [num_tasks, num]. unknown, failed: int64, positions among all
    candidates, see `Ranking`. tasks, model_version: as of the whole answer.
    """

    first: int
    scores: NDArray[np.float32]
    task_scores: NDArray[np.float32]
    unknown: NDArray[np.int64]
    failed: NDArray[np.int64]
    tasks: tuple[str, ...]
    model_version: str


@dataclass(frozen=True, slots=True)
class Retrieve:
    """What proposes the candidates of a rank: of each condition the nearest items in turn, each item once.

    conditions: names of `Model.conditions`. k: most candidates. model: one that has conditions, "" for the first of
    those.
    """

    conditions: Sequence[str]
    k: int
    model: str = ""


@dataclass(frozen=True, slots=True)
class Nearest:
    """Items of a condition's category, the nearest first. item_ids: int64; scores: float32, larger is nearer. texts: of
    each id, "" where it has none; empty where ids are integers.
    """

    item_ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interests:
    """A user's interests. vectors: float32 [num_conditions, dim], of length 1. nearest: of each condition, none where
    no items were asked. computed_ahead: by a prefill, of exactly this history. The rest is as in `Ranking`.
    """

    conditions: tuple[str, ...]
    vectors: NDArray[np.float32]
    nearest: tuple[Nearest, ...]
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    history_version: bytes
    stale: bool
    computed_ahead: bool


@dataclass(frozen=True, slots=True)
class Appended:
    """Events that are in the log. history_len: its length, they included. version: 16 bytes that stand for exactly
    these events, in this order; empty where the server did not say.

    was_found: an attempt had no answer, or another call with the same `append_id` came before, and the server found
    what that had written.
    clamped, inserted, discarded: positions of the events that were late: given the newest one's time, put where their
    time belongs, or older than all that is kept. lost_events: acknowledged before, and lost by the log since.
    """

    history_len: int
    was_found: bool = False
    version: bytes = b""
    clamped: tuple[int, ...] = ()
    inserted: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    lost_events: int = 0


@dataclass(frozen=True, slots=True)
class KeptState:
    """A KV state of a user that lies in a tier, of the events [first_event, first_event + num_events).

    fits: it is of the history as it is now, so that the next rank may begin with it.
    """

    model: str
    tier: CacheSource
    first_event: int
    num_events: int
    num_tokens: int
    num_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Events of a user, [num_events] of EVENT_DTYPE, from position `first` of the history on.

    next_first: where the next page begins, `history_len` if there is none. history_len, version: of the whole history;
    the version is what the next page expects. base: the position of the oldest event that is kept. page_version: of the
    history when it ended at `next_first`. stale: newer events may exist. states: if they were asked for. texts: of each
    event's item, "" where no served model knows one; empty where their ids are integers.
    """

    events: NDArray[np.void]
    first: int
    next_first: int
    history_len: int
    base: int
    version: bytes
    page_version: bytes
    stale: bool
    states: tuple[KeptState, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContextFeature:
    """A request-context feature of a model: values 0 to num_values - 1, with their names if they have any.

    derived: the server fills it in from the request time if the caller does not.
    """

    name: str
    num_values: int
    values: tuple[str, ...]
    derived: bool


@dataclass(frozen=True, slots=True)
class Task:
    """What a task's scores are. kind: "binary" for probabilities, "regression" for values. weight: in the blend."""

    name: str
    kind: str
    weight: float


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an ensemble. address: of the replica that is asked, "" for the server itself. version: "" while that
    is not known.
    """

    model: str
    address: str
    weight: float
    version: str


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several models that answer as one. merge: "logit" or "probability", which of binary tasks is averaged. budget_ms:
    after how long the merge takes what has arrived, min_members at least.
    """

    merge: str
    budget_ms: int
    min_members: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. version: changes whenever weights or configuration do. dense_features: names of the numbers of
    each candidate that it reads. backend: device, type and kernels. task_infos: of each task, none where the server is
    of an older release. ensemble: None for one model.
    counts_items: its checkpoint says how often each item was acted on, which `Rerank.tail_weight` needs.
    reads_last_events: it has no KV state, so there is nothing to prefill.
    of an older release. ensemble: None for one model. counts_items: its checkpoint says how often each item was acted
    on, which `Rerank.tail_weight` needs. counters: those that it reads and the server counts. conditions: what it may
    be asked by `interests`; none of a model that ranks items. items_version: of its item
    table, as answers name it; graph_version: likewise of its graph vectors. item_ids: what the ids of its items are,
    "integer" or "text".
    """

    name: str
    version: str
    architecture: str
    tasks: tuple[str, ...]
    actions: tuple[str, ...]
    context_features: tuple[ContextFeature, ...]
    dense_features: tuple[str, ...]
    max_history: int
    max_candidates: int
    prefix_stable: bool
    backend: str
    task_infos: tuple[Task, ...] = ()
    ensemble: Ensemble | None = None
    counts_items: bool = False
    reads_last_events: bool = False
    counters: tuple[str, ...] = ()
    items_version: str = ""
    graph_version: str = ""
    conditions: tuple[str, ...] = ()
    item_ids: str = "integer"

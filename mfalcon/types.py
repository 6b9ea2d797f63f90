"""The project's words as types: events, requests and answers. numpy only, no torch.

An event is one user action on one item; a history is a user's events in order. Both are numpy arrays of `EVENT_DTYPE`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import MFalconError

EVENT_DTYPE = np.dtype([("item_id", "<i8"), ("actions", "<u4"), ("value", "<f4"), ("time_ms", "<i8")])
"""One event, 24 bytes: raw item id, bitmask over the action vocabulary, value (a rating, say), time in milliseconds."""

Events = NDArray[np.void]
"""[num_events] of `EVENT_DTYPE`, in time order."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Positions = NDArray[np.uint32]

MAX_TIME_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last time that every client library can print."""

MAX_USER_ID_BYTES = 256
MAX_APPEND_ID_BYTES = 64
VERSION_BYTES = 16
"""Of the version of a history: the chained hash of its events."""


NO_SCORE = float(np.finfo(np.float32).min)
"""The score of a candidate for which a model gives no finite number: the lowest of all, and a number in JSON too."""


def no_ids() -> Ids:
    """None of the items."""
    return np.empty(0, dtype=np.int64)


def no_positions() -> Positions:
    """None of the candidates."""
    return np.empty(0, dtype=np.uint32)


def no_events() -> Events:
    """An empty history."""
    return np.empty(0, dtype=EVENT_DTYPE)


LateEvents: TypeAlias = Literal["reject", "clamp", "insert"]
LATE_EVENTS: tuple[LateEvents, ...] = ("reject", "clamp", "insert")
"""What becomes of an event that is older than the newest one of its user. reject: its append fails. clamp: it is given
that one's time. insert: it goes where its time belongs.
"""


@dataclass(frozen=True, slots=True)
class Append:
    """Events for a user's history, already validated.

    expected_len, expected_version: of the history that the caller knows; if it is another, nothing is written.
    append_id: the caller's own name of this append, by which a repetition is known; "" for none.
    late_events: one of `LATE_EVENTS`, "" for the server's setting.
    """

    events: Events
    expected_len: int | None = None
    expected_version: bytes | None = None
    append_id: str = ""
    late_events: str = ""


@dataclass(frozen=True, slots=True)
class UserAppend:
    """An append to a user's history, as one of many in a call."""

    user_id: str
    append: Append


ItemsPolicy: TypeAlias = Literal["exact", "bounded", "frozen"]
"""What becomes of KV states that hold an item row that has changed since. exact: what follows the first such event is
not used. bounded: it is used for a while after it was encoded. frozen: it is used; the rows of a history are those of
the time when its events were encoded.
"""


@dataclass(frozen=True, slots=True)
class ItemsUpdated:
    """What became of a delta of item rows: it is served. items_version, number: of the table that it made. num_rows:
    that the delta named. num_items: in that table.
    """

    model: str
    items_version: str
    number: int
    num_rows: int
    num_items: int


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of an `Append`: its events are acknowledged.

    history_len: events acknowledged for the user. version: [16] the chained hash of the history at that length.
    clamped, inserted, discarded: positions in the append of events that were given a later time, that went between
    older ones, and that are not kept, because they are older than all that is. All others came last, as they are.
    was_written: an earlier append of the same id had done all this, and it is told again.
    previous: [16] the version before, empty where it is not known.
    lost_events: acknowledged once, as this replica knows, and no more in the log, which lost them by a fault.
    """

    history_len: int
    version: bytes
    clamped: tuple[int, ...] = ()
    inserted: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    was_written: bool = False
    lost_events: int = 0
    previous: bytes = field(default=b"", compare=False)


AppendOutcome: TypeAlias = Appended | MFalconError
"""What became of one append of several: what `append_events` would have returned, or raised."""


def first_late(events: Events) -> int | None:
    """The position of the first event that is older than the one before it; None if there is none."""
    late = np.flatnonzero(events["time_ms"][1:] < events["time_ms"][:-1])
    return int(late[0]) + 1 if len(late) else None


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """A wish for a page of a user's history, already validated.

    first: the position of its first event, counted from the user's first one; where that is not kept any more the page
    begins with the oldest that is. limit: most events. expected_version: of the whole history that the caller knows; if
    it is another, there is no page. with_states: tell which KV states there are, too.
    """

    user_id: str
    first: int = 0
    limit: int = 1_000
    expected_version: bytes | None = None
    with_states: bool = False


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
class KeptState:
    """A KV state of a user that lies in a tier now, of the events [first_event, first_event + num_events).

    fits: whether a model may use it for the history as it is: these events are the beginning of its window. Of one that
    does not fit (an edited or deleted history, a window that moved on) nothing is ever used. num_bytes: that it takes,
    shared pages included.
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
    """Events of a user from position `first` on. A user who is not known has an empty history.

    history_len, version: of the whole history. base: the position of the oldest event that is kept. next_first: where
    the next page begins; the length of the history after the last one. page_version: of the history that ended there.
    stale: the event log could not be asked, newer events may exist. states: those that were asked for.
    texts: of each event's item, "" where it has none; empty where ids are integers.
    """

    history_len: int
    version: bytes
    base: int
    first: int
    events: Events
    page_version: bytes
    stale: bool = False
    states: tuple[KeptState, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def next_first(self) -> int:
        """Where the next page begins."""
        return self.first + len(self.events)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of a request went, in microseconds. rerank_us, merge_us: 0 where no reranking was asked, and for
    one model. features_us: making dense features and counters. Of an ensemble all but total_us and merge_us are those
    of the member that took longest.
    """

    queue_us: int
    state_us: int
    encode_us: int
    score_us: int
    total_us: int
    rerank_us: int = 0
    merge_us: int = 0
    features_us: int = 0


NO_CACHE = CacheInfo(CacheSource.NONE, 0, 0)
NO_TIMINGS = Timings(0, 0, 0, 0, 0)

RERANK_METHODS = ("mmr", "dpp", "msd", "llm")

RerankSkipped: TypeAlias = Literal["late", "failed", "off", "busy", "unavailable", "refused", "no_permutation"]
"""Why a top is in the order of the scores after all. late: there was no time. failed: the log says why. The rest is of
a language model. off: there is none. busy: as many requests wait for it as may. unavailable: it failed several times in
a row, and is asked again in a while. refused: it would not answer. no_permutation: its answer is no order of what it
was sent.
"""


@dataclass(frozen=True, slots=True)
class Rerank:
    """The wish for a top of candidates that are less alike.

    method: one of `RERANK_METHODS`. strength: from 0, the order of the scores, to 1, diversity alone; "llm" has none.
    depth: how many of the best candidates may change their places, 0 for the server's default. tail_weight: from 0 to
    1, how much items that were seldom acted on are lifted among them; "llm" has none.
    """

    method: str
    strength: float
    depth: int = 0
    tail_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class DenseFeatures:
    """Numbers of each candidate, by name. values: [num_candidates * len(names)], candidate by candidate, finite."""

    names: tuple[str, ...] = ()
    values: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class Retrieve:
    """A wish to rank what a large user model proposes, instead of candidates of the caller.

    model: by name. conditions: by name. num_items: how many candidates there are to be at most.
    """

    model: str
    conditions: tuple[str, ...]
    num_items: int


Returns: TypeAlias = Literal["both", "scores", "top"]
RETURNS: tuple[Returns, ...] = ("both", "scores", "top")
"""What of an answer is sent: all scores and the top, the scores alone, or the top with its scores."""


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One request to rank candidates for a user, already validated.

    candidates: [num_candidates] raw item ids, any order, duplicates allowed.
    top_k: how many positions to sort; 0 for none.
    request_time_ms: the time that the model sees as now.
    recent_events: events after the log that this request alone sees.
    context: request-context features by name; absent ones are missing to the model.
    allow_partial: where time is short the scores of the first candidates are a welcome answer.
    rerank: how the top is to differ from the order of the scores, None if it is not.
    dense: features of the candidates; absent ones are missing to the model.
    recompute: encode the history anew; no KV state that is kept is used or changed.
    retrieve: what proposes the candidates, which are empty then; None where they are given.
    returns: what of the answer is sent to the caller; see `mfalcon.returned`.
    exclude_unknown, exclude_seen: candidates that the model does not know, and items of the user's history and recent
        events, are not in the top.
    """

    user_id: str
    candidates: Ids
    top_k: int
    request_time_ms: int
    recent_events: Events
    context: Mapping[str, int]
    allow_partial: bool = False
    rerank: Rerank | None = None
    dense: DenseFeatures = field(default_factory=DenseFeatures)
    recompute: bool = False
    retrieve: Retrieve | None = None
    returns: Returns = "both"
    exclude_unknown: bool = False
    exclude_seen: bool = False


@dataclass(frozen=True, slots=True)
class MemberResult:
    """What a member of an ensemble gave to an answer. Of one that did not arrive all but its name is empty.

    address: of the replica that was asked, "" for this one. arrived: whether the scores are merged from its own too.
    unknown, failed: positions of candidates, as in `RankResult`, that this member does not know or has no score for.
    error: why it did not arrive, behind a word for it: late, overloaded, away, disagrees, outdated or failed. took_us:
    until it arrived, or was given up. items_version: see `RankResult`.
    """

    model: str
    address: str
    weight: float
    version: str = ""
    arrived: bool = False
    cache: CacheInfo = NO_CACHE
    timings: Timings = NO_TIMINGS
    unknown: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    error: str = ""
    took_us: int = 0
    items_version: str = ""


@dataclass(frozen=True, slots=True)
class RankPart:
    """Scores of a request that is still being answered: of the candidates [first, first + num).

    scores: [num] blend. task_scores: [num_tasks, num]. unknown, failed: positions among the request's candidates, see
    `RankResult`. tasks, model_version: as of the whole answer.
    """

    first: int
    scores: Floats
    task_scores: Floats
    unknown: Positions
    failed: Positions
    tasks: tuple[str, ...]
    model_version: str


TellPart: TypeAlias = Callable[[RankPart], None]
"""Is told parts in order, and does not wait."""


@dataclass(frozen=True, slots=True)
class RankResult:
    """The answer to a `RankRequest`, for its first `num_scored` candidates: all of them unless it allowed fewer.

    scores: [num_scored] blend, aligned with the candidates.
    task_scores: [num_tasks, num_scored].
    top: [min(top_k, num_scored)] positions, best first, ties by position; as reranked where that was asked. Fewer where
        the request excludes some.
    history_len: events acknowledged for the user (not the window that the model saw).
    unknown: positions of candidates that the checkpoint does not know (scored by the reserved row).
    stale: the event log could not be asked: the history is the last one verified, and newer events may exist.
    failed: positions of candidates for which the model gives no finite number: their scores are `NO_SCORE`.
    rerank_skipped: why `top` is in the order of the scores although another was asked, "" if it is not.
    members: of an ensemble, all of them in its order; none for one model. partial_merge: some member did not arrive, or
    has no score for some candidate, so that the scores are not those of all members. Of an ensemble `unknown` is what
    some member that arrived does not know, `failed` what none of them has a score for, `stale` whether one was, and
    `cache` and the first four timings are of all members, and of the slowest one.
    counters_version: of the item counters that the model read, 0 of a model that reads none; it grows by one with every
        change of one of them.
    counters_stale: acknowledged events may be missing from the item counters.
    history_version: [16] the chained hash of the acknowledged history, see `Append.expected_version`; empty where it is
        not known.
    items_version: of the item table that the scores are of, "" of the checkpoint's own and of an ensemble.
    graph_version: of the graph vectors that they are of, "" of the checkpoint's own, of a model that reads none and of
        an ensemble.
    candidates: [num_candidates] those that were retrieved, which all else is aligned with; empty where they were given.
    candidate_texts: of each of these, "" where it has none; empty where ids are integers.
    """

    scores: Floats
    tasks: tuple[str, ...]
    task_scores: Floats
    top: Positions
    model_version: str
    cache: CacheInfo
    timings: Timings
    history_len: int
    unknown: Positions
    stale: bool = False
    failed: Positions = field(default_factory=no_positions)
    rerank_skipped: RerankSkipped | Literal[""] = ""
    members: tuple[MemberResult, ...] = ()
    partial_merge: bool = False
    counters_version: int = 0
    counters_stale: bool = False
    history_version: bytes = b""
    items_version: str = ""
    candidates: Ids = field(default_factory=no_ids)
    candidate_texts: tuple[str, ...] = ()
    graph_version: str = ""

    @property
    def num_scored(self) -> int:
        """How many of the candidates have a score."""
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class ModelRank:
    """A request to rank by a model, as one of many in a call. model: by name, "" for the default one."""

    request: RankRequest
    model: str = ""


RankOutcome: TypeAlias = RankResult | MFalconError
"""What became of one rank of several: what `rank` would have returned, or raised."""


@dataclass(frozen=True, slots=True)
class ContextFeatureInfo:
    """A request-context feature that the model reads: values 0 .. num_values-1, with their names if they have any."""

    name: str
    num_values: int
    values: tuple[str, ...]
    derived: bool
    """True when the server fills it in from the request time if the caller does not."""


@dataclass(frozen=True, slots=True)
class ItemsRequest:
    """A wish to know items of a model, already validated.

    model: by name. item_ids: [num_items] raw ids, any of them. num_sampled: so many items of the model as well, those
    that were acted on more often in training more often. seed: of the sample, from 0.
    """

    model: str
    item_ids: Ids
    num_sampled: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Items:
    """Items of a model with their titles: those that were asked for, and then those sampled.

    item_ids: [num_items]. titles: of each, "" where the model has none. num_items: how many the model knows in all.
    texts: of each id, "" where it has none; empty where ids are integers.
    """

    item_ids: Ids
    titles: tuple[str, ...]
    num_items: int
    texts: tuple[str, ...] = ()


ItemIdKind: TypeAlias = Literal["integer", "text"]
MergeMethod: TypeAlias = Literal["logit", "probability"]
MERGE_METHODS: tuple[MergeMethod, ...] = ("logit", "probability")
TaskKind: TypeAlias = Literal["binary", "regression"]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What a task's scores are, probabilities (binary) or values (regression), and their weight in the blend."""

    name: str
    kind: TaskKind
    weight: float


@dataclass(frozen=True, slots=True)
class MemberInfo:
    """A member of an ensemble. address: of the replica that is asked, "" for this one. version: "" while it is not
    known.
    """

    model: str
    address: str
    weight: float
    version: str


@dataclass(frozen=True, slots=True)
class EnsembleInfo:
    """How several models answer as one. budget_ms: after how long the merge takes what has arrived."""

    merge: MergeMethod
    budget_ms: int
    min_members: int
    members: tuple[MemberInfo, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a client must know of the served model. task_infos: the tasks once more, with what their scores are.
    ensemble: None for one model; else the rest is what holds for all members, and the union of the features that they
    read.
    counts_items: its checkpoint says how often each item was acted on, which `Rerank.tail_weight` needs.
    counters: of the user and the item, which the server counts and the model reads.
    items_version: of its item table, "" as long as that is the checkpoint's. graph_version: likewise of its graph
    vectors, and "" of a model that reads none.
    conditions: that it is asked for Interests; none of a model that ranks items.
    item_ids: what the ids of its items are.
    """

    name: str
    version: str
    architecture: str
    tasks: tuple[str, ...]
    actions: tuple[str, ...]
    context_features: tuple[ContextFeatureInfo, ...]
    dense_features: tuple[str, ...]
    max_history: int
    max_candidates: int
    prefix_stable: bool
    backend: str
    task_infos: tuple[TaskInfo, ...] = ()
    ensemble: EnsembleInfo | None = None
    counts_items: bool = False
    reads_last_events: bool = False
    """With each request the last `max_history` of them: the model has no KV states."""
    counters: tuple[str, ...] = ()
    items_version: str = ""
    graph_version: str = ""
    conditions: tuple[str, ...] = ()
    item_ids: ItemIdKind = "integer"

"""How far a request is between two slices of work. What it has computed is not lost when others go first."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from mfalcon.algorithm import UserState
from mfalcon.history.history import History
from mfalcon.items.version import ItemVersion
from mfalcon.kvcache.item_rows import NO_TAGS
from mfalcon.kvcache.state import KVState
from mfalcon.types import CacheInfo, CacheSource, Events, Floats, Ids


@dataclass(frozen=True, slots=True)
class Slice:
    """What was done of a request at once, for its trace. Times are readings of `time.monotonic()`: it began, encoded
    until it scored, and ended. batch: requests that were computed together.
    """

    began: float
    encoding: float
    scoring: float
    ended: float
    num_events: int
    num_candidates: int
    batch: int


@dataclass(slots=True, eq=False)
class Progress:
    """A request that has begun. The device thread's alone, or one worker's while it works on it.

    owner: the runner that began it; another one begins again. state: what it has of the KV state that it scores
    against, pinned as long as this lives; of a model without one, what its candidates share. reused_tokens, source:
    what there was of it. history, recent: events that are still to be encoded, first those of the acknowledged
    history. keep: what to keep the state of the history under, if it may be: the history, where this window begins,
    and where the history's own begins. rows: what the model reads of the candidates (`ItemTable.keys`). dense: what it
    reads of each behind the layers, None if nothing; features_s: the seconds that took. scores: of the first
    `num_scored` of them, [num, num_tasks] each. is_spoilt: some key or value is not finite; nobody else may see that
    state. items: the version of the item table that all of it is computed with. tags, made_at: of the item rows of what
    is kept, see `StateKey`. graph_version: of the graph vectors that `dense` is of.
    """

    owner: object
    items: ItemVersion
    state: UserState
    source: CacheSource
    history: Events
    recent: Events
    keep: tuple[History, int, int] | None
    rows: Ids
    dense: Floats | None
    state_s: float
    tags: bytes = NO_TAGS
    made_at: float = 0.0
    graph_version: str = ""
    reused_tokens: int = 0
    encode_s: float = 0.0
    score_s: float = 0.0
    num_scored: int = 0
    features_s: float = 0.0
    is_spoilt: bool = False
    scores: list[np.ndarray] = field(default_factory=list)
    _pin: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        if isinstance(self.state, KVState):
            self.reused_tokens = self.state.num_tokens
            self._pin.enter_context(self.state.pinned())

    @property
    def kv(self) -> KVState:
        """The KV state, of a model that has one."""
        assert isinstance(self.state, KVState)
        return self.state

    @property
    def num_seen(self) -> int:
        """What a candidate is scored against: tokens of the KV state, or events."""
        return self.state.num_tokens if isinstance(self.state, KVState) else self.state.num_events

    @property
    def cache(self) -> CacheInfo:
        """What there was of the state and what has been encoded; nothing of a model that encodes nothing."""
        if not isinstance(self.state, KVState):
            return CacheInfo(CacheSource.NONE, 0, 0)
        return CacheInfo(self.source, self.reused_tokens, self.state.num_tokens - self.reused_tokens)

    @property
    def is_encoded(self) -> bool:
        """Whether the state is that of all events."""
        return not len(self.history) and not len(self.recent)

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to compute."""
        return self.is_encoded and self.num_scored == len(self.rows)

    def hold(self, state: KVState) -> None:
        """Go on with a longer state."""
        old, self._pin, self.state = self._pin, ExitStack(), state
        self._pin.enter_context(state.pinned())
        old.close()

    def follow(self, leader: "Progress", source: CacheSource) -> None:
        """Go on with what another one has made of the same history, found in that tier."""
        self.hold(leader.kv)
        self.is_spoilt = leader.is_spoilt
        self.history = leader.history
        self.tags, self.made_at = leader.tags, leader.made_at
        self.source, self.reused_tokens = source, leader.kv.num_tokens

    def release(self) -> None:
        """Hold the state no longer: whoever makes room may drop it."""
        self._pin.close()

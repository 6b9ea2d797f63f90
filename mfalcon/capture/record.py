"""One captured request as a MessagePack map: what the engine was asked, what it read for it, and what it answered.

Arrays travel as their bytes beside the name of their type, whole numbers in the narrowest that holds them all.
"""

import zlib
from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from mfalcon.errors import DataError
from mfalcon.types import EVENT_DTYPE, Events, Floats, Ids, ModelInfo, Rerank, Timings

MOST_EVENTS = 1_100_000
"""Of one history: what a log keeps at most, with its slack."""
Whole: TypeAlias = Literal["<u1", "<u2", "<u4", "<i4", "<i8"]
_WIDTHS: tuple[tuple[Whole, int, int], ...] = (
    ("<u1", 0, 2**8 - 1),
    ("<u2", 0, 2**16 - 1),
    ("<u4", 0, 2**32 - 1),
    ("<i4", -(2**31), 2**31 - 1),
)
NotNegative: TypeAlias = Annotated[int, Meta(ge=0)]


class Numbers(Struct, frozen=True, array_like=True, gc=False):
    """Whole numbers. kind: of each in `data`."""

    kind: Whole
    data: bytes

    @classmethod
    def of(cls, numbers: NDArray[np.int64] | NDArray[np.uint32]) -> "Numbers":
        """In the narrowest kind that holds them all."""
        if not len(numbers):
            return cls("<u1", b"")
        low, high = int(numbers.min()), int(numbers.max())
        kind: Whole = next((kind for kind, least, most in _WIDTHS if least <= low and high <= most), "<i8")
        return cls(kind, numbers.astype(kind).tobytes())

    def ids(self) -> Ids:
        """As int64. Raises ValueError where the bytes are no whole number of numbers."""
        return np.frombuffer(self.data, self.kind).astype(np.int64)


class HistoryPart(Struct, frozen=True, omit_defaults=True, gc=False):
    """A history, as what is new of it since the one that was captured before of the same user in the same file.

    base: position of the oldest event that is kept, counted from the user's first one. length: the history's. version:
    [16] its chained hash. since: the version of the one before, of which the events up to position `keep` are the
    beginning of this one; empty where this stands alone. events: those from `keep` (or from `base`) on, 24 bytes each,
    deflated by zlib if `deflated`.
    """

    base: NotNegative
    length: NotNegative
    version: bytes
    events: bytes
    keep: NotNegative = 0
    since: bytes = b""
    deflated: bool = False

    @property
    def num_events(self) -> int:
        """Of those in `events`."""
        return self.length - (self.keep if self.since else self.base)

    def added(self) -> Events:
        """The events. Raises DataError where they are not as many as is said: nothing larger is ever inflated."""
        if not 0 <= self.num_events <= MOST_EVENTS:
            raise DataError(f"a captured history has {self.num_events} events, must be at most {MOST_EVENTS}")
        size, data = self.num_events * EVENT_DTYPE.itemsize, self.events
        if self.deflated:
            inflating = zlib.decompressobj()
            try:
                data = inflating.decompress(data, size + 1)  # one more than it may have
            except zlib.error as error:
                raise DataError(f"a captured history cannot be inflated: {error}") from error
        if len(data) != size:
            raise DataError(f"a captured history says it has {self.num_events} events, and has others")
        return np.frombuffer(data, EVENT_DTYPE)


class Counts(Struct, frozen=True, omit_defaults=True, gc=False):
    """What was counted of the candidates' items for the models that read it, by the meaning of a like, see `LikeRule`.

    numbers: [num_candidates, 3]. stale: acknowledged events may be missing.
    """

    value_at_least: float | None
    actions: int
    version: int
    numbers: Numbers
    stale: bool = False


class Asked(Struct, frozen=True, omit_defaults=True, gc=False):
    """See `RankRequest`. recent_events: 24 bytes each. dense: float32, candidate by candidate."""

    candidates: Numbers
    top_k: int
    request_time_ms: int
    recent_events: bytes = b""
    context: dict[str, int] = {}
    allow_partial: bool = False
    recompute: bool = False
    rerank: Rerank | None = None
    dense_names: tuple[str, ...] = ()
    dense: bytes = b""
    exclude_unknown: bool = False
    exclude_seen: bool = False


class Answered(Struct, frozen=True, omit_defaults=True, gc=False):
    """See `RankResult`. scores: float32, [num_scored]; task_scores: float32, task by task, empty where they are
    `scores`; both empty where scores are not captured. source: the tier's name.
    """

    num_scored: int
    source: str
    reused_tokens: int
    encoded_tokens: int
    timings: Timings
    top: Numbers
    scores: bytes = b""
    task_scores: bytes = b""
    num_unknown: int = 0
    failed: Numbers = Numbers("<u1", b"")
    rerank_skipped: str = ""
    stale: bool = False
    partial_merge: bool = False
    missing_members: tuple[str, ...] = ()


class CapturedRank(Struct, frozen=True, omit_defaults=True, gc=False):
    """One answered request.

    time_ms: when it was answered. user: the keyed hash by which logs and traces name its user. model, version: which
    answered, `version` that of the checkpoint. caller: the name of the token or certificate, "" without one.
    request_id: its name in logs and traces.
    history_version: [16] of the acknowledged history that was read; `history` has that, unless it is the one that was
    captured before of the user in this file.
    """

    time_ms: int
    user: str
    model: str
    version: str
    history_version: bytes
    asked: Asked
    answered: Answered
    caller: str = ""
    request_id: str = ""
    history: HistoryPart | None = None
    counts: tuple[Counts, ...] = ()

    @property
    def candidates(self) -> Ids:
        """[num_candidates]."""
        return self.asked.candidates.ids()


def deflated(events: Events) -> tuple[bytes, bool]:
    """Events as bytes, and whether these are deflated: a few are not worth it."""
    data = events.tobytes()
    return (zlib.compress(data, 1), True) if len(events) >= 8 else (data, False)


def floats(data: bytes, shape: Sequence[int]) -> Floats:
    """float32 of a shape. Raises DataError where the bytes are not as many."""
    if len(data) != 4 * int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"a captured array has {len(data)} bytes, must be float32 of shape {tuple(shape)}")
    return np.frombuffer(data, np.float32).reshape(tuple(shape))


encode = msgspec.msgpack.Encoder().encode
decode_rank = msgspec.msgpack.Decoder(CapturedRank).decode
decode_model = msgspec.msgpack.Decoder(ModelInfo).decode

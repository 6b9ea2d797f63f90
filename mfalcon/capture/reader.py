"""Reads captured requests: of each file in order, every one that is whole, whose user was not deleted, and whose
history is known.

What a file says is not trusted: sizes are bounded before anything is made of them, and what does not fit is passed over
and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mfalcon.capture import frames
from mfalcon.capture.files import capture_files
from mfalcon.capture.frames import Content, Damage
from mfalcon.capture.keys import NAME, read_keys
from mfalcon.capture.record import CapturedRank, HistoryPart, decode_model, decode_rank, floats
from mfalcon.errors import DataError
from mfalcon.features.counters import LikeRule
from mfalcon.history.chain import CHAIN_BLOCK
from mfalcon.types import (
    EVENT_DTYPE,
    MAX_TIME_MS,
    DenseFeatures,
    Events,
    Floats,
    Ids,
    ModelInfo,
    RankRequest,
)

_MOST_TRIMMED = 1 << 48
HISTORIES_BYTES = 1 << 30
"""Of the histories of one file that are held at once."""


@dataclass(frozen=True, slots=True)
class WasHistory:
    """A history as it was when a request was answered. base: position of its oldest event. version: its chained hash
    then. grown_from: version of the history before, of which the first `keep` events are the same; empty if none are.
    """

    base: int
    events: Events
    version: bytes

    def __len__(self) -> int:
        return self.base + len(self.events)


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A captured request. user: who it is, as one id within a capture. request: with that as its user id. scores:
    [num_scored], task_scores: [num_tasks, num_scored], None where scores were not captured. tasks: their names, empty
    where they are not known. item_counts: int64 [num_candidates, 3] by meaning of a like.
    """

    user: str
    raw: CapturedRank
    request: RankRequest
    history: WasHistory
    info: ModelInfo | None
    scores: Floats | None
    task_scores: Floats | None
    item_counts: Mapping[LikeRule, Ids]


@dataclass(slots=True)
class ReadCounts:
    """What became of the frames that were met. locked: of users whose keys are deleted, or not at hand. forged: whose
    authentication fails. no_history: of which a part lay in a frame that could not be read. unfit: that say what cannot
    be.
    """

    files: int = 0
    read: int = 0
    locked: int = 0
    forged: int = 0
    no_history: int = 0
    unfit: int = 0
    damage: Damage = field(default_factory=Damage)
    refused: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Frames that were not read."""
        return self.locked + self.forged + self.no_history + self.unfit + self.damage.frames


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Capture files by their names or their directories, in order. Raises DataError where there are none."""
    files = list[Path]()
    for path in paths:
        if path.is_dir():
            found = capture_files(path)
            if not found:
                raise DataError(f"{path}: there are no capture files in it")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file or directory")
    return files


def find_keys(files: Sequence[Path], given: Path | None = None) -> Mapping[bytes, AESGCM]:
    """The keys of files: those of a key file that is given, or of the one beside them. Raises DataError."""
    places = {given} if given is not None else {path.parent / NAME for path in files}
    keys = dict[bytes, AESGCM]()
    for place in sorted(places):
        keys |= read_keys(place)
    return keys


def read_captures(files: Sequence[Path], keys: Mapping[bytes, AESGCM], counts: ReadCounts) -> Iterator[Captured]:
    """Requests of files, file by file. A file that is no capture is refused: its name and why are counted.

    Raises DataError where there is but one, and that is refused.
    """
    for path in files:
        try:
            yield from _read_file(path, keys, counts)
        except DataError as error:
            if len(files) == 1:
                raise
            counts.refused.append(str(error))


def _read_file(path: Path, keys: Mapping[bytes, AESGCM], counts: ReadCounts) -> Iterator[Captured]:
    try:
        with path.open("rb") as file:
            content = Content(file.fileno())
            file_id = frames.read_head(content, str(path))
            counts.files += 1
            yield from _read_frames(content, file_id, keys, counts)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_frames(
    content: Content, file_id: bytes, keys: Mapping[bytes, AESGCM], counts: ReadCounts
) -> Iterator[Captured]:
    models = dict[tuple[str, str], ModelInfo]()
    known: LRUCache[bytes, WasHistory] = LRUCache(HISTORIES_BYTES, getsizeof=_num_bytes)
    for frame in frames.frames(content, counts.damage):
        if frame.kind == frames.MODEL:
            try:
                info = decode_model(frame.body)
                models[info.name, info.version] = info
            except (msgspec.MsgspecError, ValueError):
                counts.unfit += 1
            continue
        if frame.kind != frames.RANK:
            counts.unfit += 1
            continue
        key = keys.get(frame.key_id)
        if key is None:
            counts.locked += 1
            continue
        try:
            bound = frames.bound_to(file_id, frame.kind, frame.key_id)
            raw = decode_rank(key.decrypt(frame.nonce, frame.body, bound))
            history = known.get(frame.key_id) if raw.history is None else _grown(known, frame.key_id, raw.history)
            if history is None or history.version != raw.history_version:
                counts.no_history += 1
                continue
            known[frame.key_id] = history
            captured = _captured(frame.key_id.hex(), raw, history, models.get((raw.model, raw.version)))
        except InvalidTag:
            counts.forged += 1
            continue
        except (DataError, msgspec.MsgspecError, ValueError):
            counts.unfit += 1
            continue
        counts.read += 1
        yield captured


def _grown(known: Mapping[bytes, WasHistory], key_id: bytes, part: HistoryPart) -> WasHistory | None:
    """The history that a part makes; None where the one before it is not known. Raises DataError."""
    if part.base % CHAIN_BLOCK or part.base > _MOST_TRIMMED:
        raise DataError(f"a captured history begins at {part.base}")
    events = part.added()
    if part.since:
        before = known.get(key_id)
        if before is None or before.version != part.since:
            return None
        if not before.base <= part.base <= part.keep <= len(before):
            raise DataError("a captured history does not fit the one before it")
        events = np.concatenate([before.events[part.base - before.base : part.keep - before.base], events])
    _check_events(events)
    return WasHistory(part.base, events, part.version)


def _check_events(events: Events) -> None:
    times = events["time_ms"]
    if len(times) and (times[0] < 0 or times[-1] > MAX_TIME_MS or (times[1:] < times[:-1]).any()):
        raise DataError("the times of captured events are not in order")
    if not np.isfinite(events["value"]).all():
        raise DataError("a captured event has a value that is no finite number")


def _captured(user: str, raw: CapturedRank, history: WasHistory, info: ModelInfo | None) -> Captured:
    """Raises DataError and ValueError for what no server has written."""
    asked, answered = raw.asked, raw.answered
    candidates, num_names = raw.candidates, len(asked.dense_names)
    num, num_scored = len(candidates), answered.num_scored
    if not num or not 0 <= num_scored <= num or not 0 <= asked.request_time_ms <= MAX_TIME_MS:
        raise DataError("a captured request has no candidates, or no time")
    if asked.top_k < 0 or len(raw.version) > 1_024 or len(raw.user) > 1_024:
        raise DataError("a captured request has a field out of its bounds")
    recent = np.frombuffer(asked.recent_events, EVENT_DTYPE)
    _check_events(recent)
    dense = floats(asked.dense, (num * num_names,))
    if not np.isfinite(dense).all():
        raise DataError("a captured feature is no finite number")
    scores = task_scores = None
    if answered.scores:
        scores = floats(answered.scores, (num_scored,))
        flat = answered.task_scores or answered.scores
        task_scores = floats(flat, (len(flat) // (4 * num_scored), num_scored))
    request = RankRequest(
        user_id=user,
        candidates=candidates,
        top_k=min(asked.top_k, num),
        request_time_ms=asked.request_time_ms,
        recent_events=recent,
        context=asked.context,
        allow_partial=False,
        rerank=asked.rerank,
        dense=DenseFeatures(asked.dense_names, dense),
        exclude_unknown=asked.exclude_unknown,
        exclude_seen=asked.exclude_seen,
    )
    item_counts = dict[LikeRule, Ids]()
    for counts in raw.counts:
        numbers = counts.numbers.ids()
        if len(numbers) != 3 * num:
            raise DataError("captured counts are not those of the candidates")
        item_counts[LikeRule(counts.value_at_least, counts.actions)] = numbers.reshape(num, 3)
    return Captured(user, raw, request, history, info, scores, task_scores, item_counts)


def _num_bytes(history: WasHistory) -> int:
    return history.events.nbytes + 200

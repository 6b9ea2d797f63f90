"""Captures answered requests beside them: the event loop puts them into a bounded queue, a thread writes them.

A disk that is slow or full costs captures, which are counted, and never a request. A deletion is the exception, because
it promises something: it is answered once the disk has overwritten the user's key.
"""

import asyncio
import logging
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from mfalcon import scope
from mfalcon.capture import frames
from mfalcon.capture.files import FileLimits, Files, make_private
from mfalcon.capture.keys import Keys
from mfalcon.capture.record import Answered, Asked, CapturedRank, Counts, Numbers, encode
from mfalcon.capture.seen import Seen
from mfalcon.capture.told import ToldHistories
from mfalcon.clock import now_ms
from mfalcon.errors import ConfigError, StorageUnavailable
from mfalcon.history.deletions import Deletion
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.history import History
from mfalcon.metrics.captures import CaptureMetrics
from mfalcon.types import ModelInfo, RankRequest, RankResult

_log = logging.getLogger(__name__)

QUEUE_BYTES: Final = 32 << 20
"""Of requests that wait for the disk."""
_TURN_S: Final = 0.25
"""What was offered for so many seconds is written together: that takes half the processor time of a turn for every few,
as what the thread needs is in the caches then, and fewer requests meet it."""
_AGE_TURN_S: Final = 60.0
_RETRY_S: Final = 1.0
"""After the disk has refused something."""
_CLOSE_S: Final = 5.0
"""For what is queued to be written once the server ends."""
_DELETE_S: Final = 10.0
_LONGEST_RANK_S: Final = 3_600.0
_MOST_DELETED: Final = 100_000
_OBJECT_BYTES: Final = 2_000


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """directory: of this server alone. sample: the share of users whose requests are captured, all of them. scores:
    whether those are kept too. tag: the keyed hash of a user by which logs name him. caller: who asks, read while a
    request is answered. one_life: another life of a user's log means that he was deleted elsewhere.
    """

    directory: Path
    tag: Callable[[str], str]
    sample: float = 0.01
    limits: FileLimits = field(default_factory=lambda: FileLimits(1 << 30, 64 << 20, 30 * 86_400.0))
    scores: bool = True
    caller: Callable[[], str] = lambda: ""
    one_life: bool = False
    queue_bytes: int = QUEUE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class _Offer:
    """An answered request on its way to the disk."""

    seen: Seen
    history: History
    info: ModelInfo
    request: RankRequest
    result: RankResult
    caller: str
    request_id: str
    time_ms: int
    num_bytes: int


class Capture:
    """A `Captures`, of one server. `begin`, `offer` and `delete` are the event loop's. Who makes it calls `start` and
    `close`.
    """

    def __init__(self, options: CaptureOptions, metrics: CaptureMetrics) -> None:
        """Makes the directory if there is none. Raises ConfigError where it cannot be used, or another server does."""
        self._options = options
        self._metrics = metrics
        try:
            make_private(options.directory)
            self._lock = DirectoryLock(options.directory, "capture_dir")
            self._keys = Keys(options.directory)
            self._files = Files(options.directory, options.limits)
        except OSError as error:
            raise ConfigError(f"capture_dir: {options.directory} cannot be used: {error.strerror}") from error
        self._told = ToldHistories()
        self._models: set[tuple[str, str]] = set()
        self._last_file = dict.fromkeys(self._keys.users, self._files.number)
        self._below = int(options.sample * 2**64)
        self._began = 0
        self._offers: deque[_Offer] = deque()
        self._offered = self._taken = 0
        self._deletions: deque[tuple[bytes, Future[None]]] = deque()
        self._deleted: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._wake = threading.Event()
        self._closing = False
        self._failed_at = -_RETRY_S
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    @property
    def num_waiting(self) -> int:
        """Requests that are not in a file yet, but for the one that is being written."""
        return len(self._offers)

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the thread that writes, while it lives."""
        assert self._thread.ident is not None
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def begin(self, user: bytes) -> Seen | None:
        """A request begins; None if its user is not in the sample. user: hash."""
        if int.from_bytes(user[:8], "little") >= self._below:
            return None
        self._began += 1
        return Seen(self._began, user)

    def offer(self, seen: Seen, info: ModelInfo, request: RankRequest, result: RankResult) -> None:
        """A request has been answered. info: of the model that answered, or of its successor."""
        if seen.history is None:
            self._metrics.dropped("no_history")
            return
        num_bytes = _OBJECT_BYTES + request.candidates.nbytes + request.dense.values.nbytes + seen.history.num_bytes
        num_bytes += request.recent_events.nbytes + result.scores.nbytes + result.task_scores.nbytes
        if self._offered - self._taken + num_bytes > self._options.queue_bytes or self._closing:
            self._metrics.dropped("queue")
            return
        self._offered += num_bytes
        if self._offered - self._taken > self._options.queue_bytes // 4:
            self._wake.set()
        caller, name = self._options.caller(), scope.request_id()
        self._offers.append(_Offer(seen, seen.history, info, request, result, caller, name, now_ms(), num_bytes))

    async def delete(self, user: bytes, deadline: float | None) -> None:
        """Have what was captured of a user until now unreadable. Raises StorageUnavailable where the disk did not say
        so in time (`time.monotonic()`).
        """
        told = self.delete_soon(user)
        left = _DELETE_S if deadline is None else min(_DELETE_S, max(0.0, deadline - time.monotonic()))
        try:
            await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(told)), left)
        except TimeoutError as error:
            raise StorageUnavailable("the disk of captured requests has not answered: ask again") from error
        except OSError as error:
            raise StorageUnavailable(f"captured requests: {error.strerror}: ask again") from error

    def delete_soon(self, user: bytes) -> "Future[None]":
        """The same, beside: the future says when, or raises OSError."""
        now, told = time.monotonic(), Future[None]()
        self._deleted[user] = self._began, now
        self._deleted.move_to_end(user)
        while len(self._deleted) > _MOST_DELETED or now - next(iter(self._deleted.values()))[1] > _LONGEST_RANK_S:
            self._deleted.popitem(last=False)
        self._deletions.append((user, told))
        self._wake.set()
        return told

    def delete_missed(self, deletions: Iterable[Deletion]) -> None:
        """The same of users whom others deleted, perhaps while this server did not hear of it. One whose key is of a
        later life than the one that ended is left alone.
        """
        for deletion in deletions:
            if self._keys.generation_of(deletion.user) in (b"", deletion.generation):
                self.delete_soon(deletion.user)

    async def close(self) -> None:
        """Write what is queued, for some seconds, and end."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _CLOSE_S)
        if not self._thread.is_alive():
            self._keys.close()
            self._lock.release()

    def _run(self) -> None:
        aged = -_AGE_TURN_S
        while True:
            self._wake.wait(_TURN_S)
            self._wake.clear()
            is_last = self._closing
            if time.monotonic() - aged > _AGE_TURN_S:
                self._age()
                aged = time.monotonic()
            self._delete_users()
            while self._offers and not self._deletions:
                offer = self._offers.popleft()
                self._taken += offer.num_bytes
                self._take(offer)
            self._metrics.disk_bytes.set(self._files.num_bytes)
            self._metrics.users.set(len(self._keys))
            if is_last and not self._offers and not self._deletions:
                break
        try:
            self._files.end()
        except OSError as error:
            _log.error("capture: the last file could not be closed: %s", error)

    def _age(self) -> None:
        """Delete the files that are too old, whether anything is captured or not."""
        try:
            self._files.keep_within(0)
            self._drop_unused_keys()
        except OSError as error:
            _log.error("capture: old files could not be deleted: %s", error)

    def _delete_users(self) -> None:
        waiting = list[tuple[bytes, Future[None]]]()
        while self._deletions:
            waiting.append(self._deletions.popleft())
        if not waiting:
            return
        users = {user for user, _ in waiting}
        error: OSError | None = None
        try:
            self._metrics.deleted.inc(self._keys.delete(users))
        except OSError as raised:
            error = raised
            _log.error("capture: %d users could not be deleted: %s", len(users), raised)
        for user in users:
            self._told.forget(user)
            self._last_file.pop(user, None)
        self._metrics.users.set(len(self._keys))
        for _, told in waiting:
            if error is not None:
                told.set_exception(error)
            else:
                told.set_result(None)

    def _take(self, offer: _Offer) -> None:
        """Write an offer, if its user is still there and the disk takes it."""
        deleted = self._deleted.get(offer.seen.user)
        if deleted is not None and offer.seen.began <= deleted[0]:
            self._metrics.dropped("deleted")
            return
        if time.monotonic() - self._failed_at < _RETRY_S:
            self._metrics.dropped("disk")
            return
        try:
            self._write(offer)
        except OSError as error:
            if not self._is_failing:
                _log.error("capture: nothing is captured while the disk refuses it: %s", error)
            self._is_failing, self._failed_at = True, time.monotonic()
            self._told.forget(offer.seen.user)
            self._metrics.dropped("disk")
        except Exception:  # noqa: BLE001 (the thread's edge: what fails one request fails no other)
            _log.exception("capture: a request could not be captured")
            self._told.forget(offer.seen.user)
            self._metrics.dropped("failed")
        else:
            if self._is_failing:
                _log.warning("capture: the disk takes requests again")
            self._is_failing = False

    def _write(self, offer: _Offer) -> None:
        """Raises OSError."""
        files, user = self._files, offer.seen.user
        if files.is_due:
            self._told.clear()
            self._models.clear()
            files.keep_within(self._options.limits.file_bytes)
            self._drop_unused_keys()
            files.begin()
        key = self._keys.of(user, offer.history.generation if self._options.one_life else b"")
        self._last_file[user] = files.number
        of_model, written = (offer.info.name, offer.result.model_version), 0
        if of_model not in self._models:
            written += self._add(frames.frame(frames.MODEL, encode(offer.info)))
            self._models.add(of_model)
        plain = encode(captured(offer.history, offer, self._told, self._options))
        nonce = os.urandom(frames.NONCE_BYTES)
        body = key.cipher.encrypt(nonce, plain, frames.bound_to(files.file_id, frames.RANK, key.id))
        written += self._add(frames.frame(frames.RANK, body, key.id, nonce))
        self._metrics.captured.inc()
        self._metrics.bytes.inc(written)

    def _add(self, frame: bytes) -> int:
        self._files.write(frame)
        return len(frame)

    def _drop_unused_keys(self) -> None:
        """Delete keys that no file needs any more."""
        oldest = self._files.oldest
        unused = [user for user, number in self._last_file.items() if number < oldest]
        if unused:
            self._keys.delete(unused)
            for user in unused:
                del self._last_file[user]


def captured(history: History, offer: _Offer, told: ToldHistories, options: CaptureOptions) -> CapturedRank:
    """A request as it is written."""
    request, result = offer.request, offer.result
    dense = request.dense
    asked = Asked(
        candidates=Numbers.of(request.candidates),
        top_k=request.top_k,
        request_time_ms=request.request_time_ms,
        recent_events=request.recent_events.tobytes(),
        context=dict(request.context),
        allow_partial=request.allow_partial,
        recompute=request.recompute,
        rerank=request.rerank,
        dense_names=dense.names,
        dense=dense.values.tobytes(),
        exclude_unknown=request.exclude_unknown,
        exclude_seen=request.exclude_seen,
    )
    scores = result.scores.tobytes() if options.scores else b""
    tasks = result.task_scores.tobytes() if options.scores else b""
    answered = Answered(
        num_scored=result.num_scored,
        source=result.cache.source.name.lower(),
        reused_tokens=result.cache.reused_tokens,
        encoded_tokens=result.cache.encoded_tokens,
        timings=result.timings,
        top=Numbers.of(result.top),
        scores=scores,
        task_scores=b"" if tasks == scores else tasks,
        num_unknown=len(result.unknown),
        failed=Numbers.of(result.failed),
        rerank_skipped=result.rerank_skipped,
        stale=result.stale,
        partial_merge=result.partial_merge,
        missing_members=tuple(member.model for member in result.members if not member.arrived),
    )
    return CapturedRank(
        time_ms=offer.time_ms,
        user=options.tag(request.user_id),
        model=offer.info.name,
        version=result.model_version,
        caller=offer.caller,
        request_id=offer.request_id,
        history_version=history.version,
        asked=asked,
        answered=answered,
        history=told.part(history),
        counts=tuple(
            Counts(
                like.value_at_least,
                like.actions,
                offer.seen.counted.versions.get(like, 0),
                Numbers.of(np.ascontiguousarray(numbers).reshape(-1)),
                like in offer.seen.counted.stale,
            )
            for like, numbers in offer.seen.counted.numbers.items()
        ),
    )

"""What a log remembers of its last appends by the ids that callers gave them: a repetition is told what became of the
first one.
"""

import hashlib
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mfalcon.errors import DamagedLog, InvalidInput
from mfalcon.types import Append, Appended

MAX_IDS = 4_096
"""Of one user, the newest: seconds of the most that one user's log takes, where a caller asks again within seconds."""
TTL_S = 3_600
"""After a user's last append with an id, all of them are forgotten."""
ID_BYTES = 16
RECORD_BYTES, USER_BYTES = 130, 400
"""Of memory around a packed record, and around those of a user, as measured; a little more, so that it is a bound."""

_FIXED = struct.Struct("<8sQ16s")
_CLAMPED, _INSERTED, _DISCARDED = 1, 2, 3


def id_hash(append: Append) -> bytes:
    """Hash of an append's id: its name in what is remembered, of ID_BYTES whatever the caller wrote."""
    name = append.append_id.encode(errors="surrogatepass")
    return hashlib.blake2b(name, digest_size=ID_BYTES, person=b"mfalcon.append").digest()


@dataclass(frozen=True, slots=True)
class Record:
    """What became of an append. digest: hash of its events. fates: two bits an event, nothing if none was late."""

    digest: bytes
    history_len: int
    version: bytes
    fates: bytes = b""

    @classmethod
    def of(cls, append: Append, told: Appended) -> "Record":
        """Of an append that is being written."""
        return cls(_digest(append), told.history_len, told.version, _fates(len(append.events), told))

    @classmethod
    def unpack(cls, raw: bytes) -> "Record":
        """What `pack` gave. Raises DamagedLog if it cannot have given that: nobody knows what became of the append."""
        if len(raw) < _FIXED.size:
            raise DamagedLog("append id")
        digest, history_len, version = _FIXED.unpack_from(raw)
        return cls(digest, history_len, version, raw[_FIXED.size :])

    def pack(self) -> bytes:
        """Its bytes: 32, and the fates."""
        return _FIXED.pack(self.digest, self.history_len, self.version) + self.fates

    def told_again(self, append: Append) -> Appended:
        """What the first append of this id was told. Raises InvalidInput if it was of other events."""
        if self.digest != _digest(append):
            raise InvalidInput(
                "append_id", append.append_id, "another one: other events have been appended under this one"
            )
        return Appended(
            self.history_len,
            self.version,
            clamped=_positions(self.fates, len(append.events), _CLAMPED),
            inserted=_positions(self.fates, len(append.events), _INSERTED),
            discarded=_positions(self.fates, len(append.events), _DISCARDED),
            was_written=True,
        )


def _digest(append: Append) -> bytes:
    return hashlib.blake2b(append.events.tobytes(), digest_size=8).digest()


def _fates(num_events: int, told: Appended) -> bytes:
    if not (told.clamped or told.inserted or told.discarded):
        return b""
    fates = np.zeros(num_events, np.uint8)
    for fate, positions in ((_CLAMPED, told.clamped), (_INSERTED, told.inserted), (_DISCARDED, told.discarded)):
        fates[list(positions)] = fate
    return np.packbits(np.stack([fates >> 1, fates & 1])).tobytes()


def _positions(packed: bytes, num_events: int, fate: int) -> tuple[int, ...]:
    if not packed:
        return ()
    high, low = np.unpackbits(np.frombuffer(packed, np.uint8), count=2 * num_events).reshape(2, num_events)
    return tuple(np.flatnonzero(2 * high + low == fate).tolist())


def _bytes_of(record: bytes) -> int:
    """Of memory that a packed record takes, with its name and their place in a dict."""
    return len(record) + RECORD_BYTES


class RecentAppends:
    """The ids of this process's own log. Lives on the event loop.

    max_ids: of a user, the newest. ttl_s: seconds after a user's last append when all of his are forgotten.
    max_bytes: of all users together; those go whose users appended longest ago.
    """

    def __init__(
        self,
        max_ids: int = MAX_IDS,
        ttl_s: float = TTL_S,
        max_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_ids = max_ids
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._clock = clock
        self._users: OrderedDict[str, tuple[float, dict[bytes, bytes]]] = OrderedDict()
        self.num_bytes = 0
        """Of memory that the records take."""

    def find(self, user_id: str, append: Append) -> Appended | None:
        """What an append of the same id was told; None if none is remembered. Raises InvalidInput as `told_again`."""
        if not append.append_id:
            return None
        self._expire()
        _, records = self._users.get(user_id, (0.0, {}))
        raw = records.get(id_hash(append))
        return None if raw is None else Record.unpack(raw).told_again(append)

    def add(self, user_id: str, append: Append, told: Appended) -> None:
        """Remember an append that has been written, if it has an id."""
        if not append.append_id:
            return
        if user_id not in self._users:
            self.num_bytes += USER_BYTES
        _, records = self._users.pop(user_id, (0.0, {}))
        self._users[user_id] = (self._clock(), records)
        name = id_hash(append)
        before = records.pop(name, None)
        if before is not None:
            self.num_bytes -= _bytes_of(before)
        records[name] = Record.of(append, told).pack()
        self.num_bytes += _bytes_of(records[name])
        if len(records) > self._max_ids:
            self.num_bytes -= _bytes_of(records.pop(next(iter(records))))
        self._expire()

    def delete(self, user_id: str) -> None:
        """Forget a user's."""
        if user_id in self._users:
            _, records = self._users.pop(user_id)
            self.num_bytes -= USER_BYTES + sum(map(_bytes_of, records.values()))

    def _expire(self) -> None:
        oldest = self._clock() - self._ttl_s
        while self._users:
            user_id, (last, _) = next(iter(self._users.items()))
            if last > oldest and (self.num_bytes <= self._max_bytes or len(self._users) == 1):
                return
            self.delete(user_id)

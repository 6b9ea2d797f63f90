"""What a capture file has of users' histories already, so that each event of a user is written once a file."""

from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from mfalcon.capture.record import HistoryPart, deflated
from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES, num_equal
from mfalcon.history.history import History

_MOST_BYTES: Final = 32 << 20
_OBJECT_BYTES: Final = 400


@dataclass(frozen=True, slots=True)
class _Last:
    """The history that was written last of a user, by its links."""

    base: int
    length: int
    version: bytes
    links: bytes


class ToldHistories:
    """Of one file. Belongs to one thread."""

    def __init__(self) -> None:
        self._last: LRUCache[bytes, _Last] = LRUCache(_MOST_BYTES, getsizeof=_num_bytes)

    def clear(self) -> None:
        """Another file begins."""
        self._last.clear()

    def forget(self, user: bytes) -> None:
        """The user was deleted, or what was to be written of him was not."""
        self._last.pop(user, None)

    def part(self, history: History) -> HistoryPart | None:
        """What is new of a history; None if that is nothing. It counts as written from now on."""
        last, version = self._last.get(history.user), history.version
        if last is not None and last.version == version and last.base == history.base:
            return None
        self._last[history.user] = _Last(history.base, len(history), version, history.links)
        keep = 0 if last is None else _shared(last, history)
        if last is None or history.base < last.base or keep <= history.base:
            events, is_deflated = deflated(history.events)
            return HistoryPart(history.base, len(history), version, events, deflated=is_deflated)
        events, is_deflated = deflated(history.since(keep))
        return HistoryPart(history.base, len(history), version, events, keep, last.version, is_deflated)


def _shared(last: _Last, history: History) -> int:
    """Events that both surely begin with alike, as `History.shared` has it; 0 where none are known to be."""
    base, shorter = max(last.base, history.base), min(last.length, len(history))
    if base > shorter:
        return 0
    if last.length == shorter and history.link(shorter) == last.version:
        return shorter
    links, others = (one.links[(base - one.base) // CHAIN_BLOCK * LINK_BYTES :] for one in (last, history))
    num = num_equal(links, others)
    return base + (num - 1) * CHAIN_BLOCK if num else 0


def _num_bytes(last: _Last) -> int:
    return len(last.links) + _OBJECT_BYTES

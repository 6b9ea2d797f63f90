"""What may be done with an event log in a file from outside its server: read it all, check it, add to it, copy it.

Whatever reads may do so while a server writes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from mfalcon.clock import seconds_now
from mfalcon.errors import DataError
from mfalcon.history.file_changes import Put
from mfalcon.history.file_store import FileStore
from mfalcon.history.history import History, no_history
from mfalcon.history.record import LogRecord

_PAGE = 256
_IN_A_COMMIT = 512


def records(store: FileStore) -> Iterator[LogRecord]:
    """Every user's record, in the order of their hashes; those that change meanwhile as of some moment. No reading
    lasts long, so that the journal may be emptied. Raises sqlite3.Error.
    """
    after = b""
    while page := store.scan(after, _PAGE):
        yield from page
        after = page[-1].user


def histories(store: FileStore) -> Iterator[History]:
    """The same, verified. Raises DataError for one that is damaged."""
    for record in records(store):
        history = record.history()
        if history is None:
            raise DataError(f"the log of user {record.user_id!r} is damaged: `mfalcon log verify` names all that are")
        yield history


@dataclass(slots=True)
class Imported:
    """added, same: how many users. kept: those whose log here holds other events; it was left as it is."""

    added: int = 0
    same: int = 0
    kept: list[str] = field(default_factory=list)


def add(store: FileStore, found: Iterable[History]) -> Imported:
    """Add histories of users who have none. Raises sqlite3.Error; what was committed before stays."""
    told, now = Imported(), seconds_now()
    waiting = iter(found)
    while group := list(islice(waiting, _IN_A_COMMIT)):
        puts = [Put(_nothing_of(history), history, now) for history in group]
        for history, done in zip(group, store.commit(puts), strict=True):
            if isinstance(done, Exception):
                raise done
            if done.applied:
                told.added += 1
                continue
            there = store.read(history.user)
            if there is not None and there.link == history.version:
                told.same += 1
            else:
                told.kept.append(history.user_id)
    return told


def _nothing_of(history: History) -> History:
    return no_history(history.user_id)

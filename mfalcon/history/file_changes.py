"""What may be done to an event log in a file, and what became of it."""

import sqlite3
from dataclasses import dataclass
from typing import TypeAlias

from mfalcon.history.history import History


@dataclass(frozen=True, slots=True)
class AppendId:
    """What is kept of an append that its caller named, see append_ids.py: its `id_hash` and its packed `Record`.
    written: in seconds since 1970.
    """

    name: bytes
    written: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """A history in the place of another one of the same user, of which it mostly is the continuation.

    used: now, in seconds since 1970, which is noted if the note that there is is `step_s` older. append_id: if an
    append of this name is known already nothing is changed.
    """

    before: History
    after: History
    used: int
    step_s: int = 0
    append_id: AppendId | None = None


@dataclass(frozen=True, slots=True)
class Touch:
    """The note that a user was asked for."""

    user: bytes
    used: int


@dataclass(frozen=True, slots=True)
class Delete:
    """The end of a user's log. used_before: only if the user was not asked for since then."""

    user: bytes
    used_before: int | None = None


@dataclass(frozen=True, slots=True)
class Expire:
    """Forget append ids that were written before a time, the oldest first, so many at most, and damaged logs that were
    moved away before a time.
    """

    written_before: int
    most: int
    moved_before: int


@dataclass(frozen=True, slots=True)
class FindId:
    """Nothing but the question whether an append of this name was written."""

    user: bytes
    name: bytes


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Move a user's damaged log away, where nobody reads it. now: in seconds since 1970."""

    user: bytes
    now: int


Change: TypeAlias = Put | Touch | Delete | Quarantine | Expire | FindId


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a change. applied: False if the rows hold another history. generation: of the log that ended.
    written: the record of the append of this name that had been written before.
    """

    applied: bool = True
    generation: bytes = b""
    written: bytes | None = None


class FileGone(sqlite3.OperationalError):
    """The file or its journal was deleted, moved or replaced while it was open: nobody would find what is written to
    it now. Nothing was.
    """


def wrote_nothing(error: sqlite3.Error) -> bool:
    """Whether a transaction that failed like this has certainly left nothing in the log, also for whoever opens it
    after a crash. If it could not be written whole, its end is missing in the journal; if only the wait for the disk
    failed, it may be there.
    """
    return _primary(error) != sqlite3.SQLITE_IOERR or error.sqlite_errorcode == sqlite3.SQLITE_IOERR_WRITE


def is_full(error: sqlite3.Error) -> bool:
    """Whether the disk, or what the log may take of it, is full."""
    return _primary(error) == sqlite3.SQLITE_FULL


def is_damage(error: sqlite3.Error) -> bool:
    """Whether pages of the file are not what was written to them."""
    return _primary(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_of_one(error: sqlite3.Error) -> bool:
    """Whether other changes may do better: a damaged page is met by those alone that need it."""
    return _primary(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT)


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

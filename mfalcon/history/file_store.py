"""The tables of an event log on one machine's disk: SQLite, whose journal is a write-ahead log.

A user is one row, with the events behind the last whole block of `CHAIN_BLOCK`; whole blocks are rows of their own. So
an append of one event writes one page, or two, however long the history is. A change names the history that it was made
from, and changes nothing if the rows hold another one.
"""

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfalcon.errors import ConfigError
from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES
from mfalcon.history.file_changes import (
    Change,
    Delete,
    Done,
    Expire,
    FileGone,
    FindId,
    Put,
    Quarantine,
    Touch,
    is_of_one,
)
from mfalcon.history.history import History
from mfalcon.history.record import LogRecord
from mfalcon.types import EVENT_DTYPE

_log = logging.getLogger(__name__)

FILE_NAME = "log.sqlite3"
FORMAT = 1
PAGE_BYTES = 4_096
_BLOCK_BYTES = CHAIN_BLOCK * EVENT_DTYPE.itemsize

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE about (format INTEGER NOT NULL, users INTEGER NOT NULL, events INTEGER NOT NULL);
INSERT INTO about VALUES ({FORMAT}, 0, 0);
CREATE TABLE users (
    user BLOB PRIMARY KEY, user_id TEXT NOT NULL, generation BLOB NOT NULL, base INTEGER NOT NULL,
    length INTEGER NOT NULL, base_link BLOB NOT NULL, link BLOB NOT NULL, used INTEGER NOT NULL, tail BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX users_used ON users (used);
CREATE TABLE blocks (user BLOB, first INTEGER, events BLOB NOT NULL, PRIMARY KEY (user, first)) WITHOUT ROWID;
CREATE TABLE append_ids (
    user BLOB, id BLOB, written INTEGER NOT NULL, record BLOB NOT NULL, PRIMARY KEY (user, id)
) WITHOUT ROWID;
CREATE INDEX append_ids_written ON append_ids (written);
CREATE TABLE quarantine (
    moved INTEGER NOT NULL, user, user_id, generation, base, length, base_link, link, used, tail
);
CREATE TABLE quarantine_blocks (moved INTEGER NOT NULL, user, first, events);
COMMIT;
"""
_ROW_TYPES = (bytes, str, bytes, int, int, bytes, bytes, int, bytes)
_ROW = "user, user_id, generation, base, length, base_link, link, used, tail"


@dataclass(frozen=True, slots=True)
class Totals:
    """What a log holds. events: those kept."""

    users: int
    events: int


@dataclass(slots=True)
class _Growth:
    users: int = 0
    events: int = 0


@dataclass(slots=True)
class FileStore:
    """One connection to the file. Belongs to one thread at a time."""

    db: sqlite3.Connection
    _files: tuple[tuple[Path, int], ...] = ()  # with the inode of each, where it is the writing connection
    _growth: _Growth = field(default_factory=_Growth)  # of the transaction
    _committed: _Growth = field(default_factory=_Growth)  # by the last `commit`

    @classmethod
    def open(cls, directory: Path, *, fsync: bool = True) -> "FileStore":
        """The writing connection, which makes the file if there is none. fsync: whether a commit waits for the disk.

        Raises ConfigError if the file is none of ours, or of a newer version.
        """
        path = directory / FILE_NAME
        # Made here, so that nobody else may read it. Nothing opens it beside SQLite later: closing a second descriptor
        # of the file would give up SQLite's locks.
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        db = _connect(f"{path.absolute().as_uri()}?mode=rw")
        try:
            db.execute(f"PRAGMA page_size={PAGE_BYTES}")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            db.execute("PRAGMA secure_delete=ON")
            db.execute("PRAGMA wal_autocheckpoint=0")  # it would hold up the commit that meets it
            if not db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                db.executescript(_SCHEMA)
            _check_format(db, path)
        except sqlite3.Error as error:
            db.close()
            raise ConfigError(f"log_dir: {path} cannot be used: {error}") from error
        files = (path, *(path.with_name(f"{FILE_NAME}-{kind}") for kind in ("wal", "shm")))
        return cls(db, tuple((file, _inode(file)) for file in files))

    @classmethod
    def open_to_read(cls, directory: Path) -> "FileStore":
        """A connection that only reads. Raises ConfigError."""
        path = directory / FILE_NAME
        try:
            db = _connect(f"{path.absolute().as_uri()}?mode=ro")
            _check_format(db, path)
        except sqlite3.Error as error:
            raise ConfigError(f"log_dir: {path} cannot be read: {error}") from error
        return cls(db)

    def close(self) -> None:
        """Close the connection."""
        self.db.close()

    def read(self, user: bytes) -> LogRecord | None:
        """A user's rows as of one moment, unverified; None if there are none. Raises sqlite3.Error."""
        with _reading(self.db):
            row = self.db.execute(f"SELECT {_ROW} FROM users WHERE user = ?", (user,)).fetchone()
            return None if row is None else self._record(row)

    def scan(self, after: bytes, most: int) -> list[LogRecord]:
        """Records of up to `most` users in the order of their hashes, those behind `after`. Raises sqlite3.Error."""
        with _reading(self.db):
            rows = self.db.execute(f"SELECT {_ROW} FROM users WHERE user > ? ORDER BY user LIMIT ?", (after, most))
            return [self._record(row) for row in rows.fetchall()]

    def idle(self, used_before: int, most: int) -> list[tuple[bytes, int]]:
        """Users who were not asked for since then, and when they were, the longest ago first. Raises sqlite3.Error."""
        query = "SELECT user, used FROM users WHERE used < ? ORDER BY used LIMIT ?"
        return self.db.execute(query, (used_before, most)).fetchall()

    def append_record(self, user: bytes, name: bytes) -> bytes | None:
        """What is kept of a named append, no bytes if damage has made that something else. Raises sqlite3.Error."""
        query = "SELECT record FROM append_ids WHERE user = ? AND id = ?"
        row = self.db.execute(query, (user, name)).fetchone()
        if row is None:
            return None
        return row[0] if isinstance(row[0], bytes) else b""

    def totals(self) -> Totals:
        """What the log holds. Raises sqlite3.Error."""
        return _totals(*self.db.execute("SELECT users, events FROM about").fetchone())

    def oldest(self) -> int | None:
        """When the user who was not asked for longest was, None without users. Raises sqlite3.Error."""
        oldest: int | None = self.db.execute("SELECT min(used) FROM users").fetchone()[0]
        return oldest

    def grown(self, totals: Totals) -> Totals:
        """What `totals` have become by the last `commit`."""
        return _totals(totals.users + self._committed.users, totals.events + self._committed.events)

    def file_bytes(self) -> int:
        """Bytes of the pages that hold something, without the journal. Raises sqlite3.Error."""
        pages = self.db.execute("PRAGMA page_count").fetchone()[0]
        free = self.db.execute("PRAGMA freelist_count").fetchone()[0]
        return int(pages - free) * PAGE_BYTES

    def commit(self, changes: Sequence[Change]) -> list[Done | sqlite3.Error]:
        """Make changes in one transaction, or, if one of them fails by itself, each in its own. Raises sqlite3.Error
        if the transaction cannot be begun or committed, FileGone among them; `wrote_nothing` says what that leaves.
        """
        self._committed = _Growth()
        for file, inode in self._files:
            if _inode(file) != inode:
                raise FileGone(f"{file} was deleted, moved or replaced while it was open")
        try:
            return self._together(changes)
        except _OneFailed:
            return [self._alone(change) for change in changes]

    def checkpoint(self, *, truncate: bool) -> bool:
        """Move the journal's pages into the file; True if all of them are there. truncate: hold up writers for the last
        of them, and empty the journal. Raises sqlite3.Error.
        """
        kind = "TRUNCATE" if truncate else "PASSIVE"
        busy, in_journal, moved = self.db.execute(f"PRAGMA wal_checkpoint({kind})").fetchone()
        return not busy and in_journal == moved

    def backup(self, target: Path) -> None:
        """Copy the log as of one moment to a file that is not there yet, while others write. Raises sqlite3.Error."""
        with contextlib.closing(sqlite3.connect(target)) as copy:
            self.db.backup(copy)

    def _record(self, row: tuple[Any, ...]) -> LogRecord:
        """What is in a user's rows, whatever damage has made of them."""
        user, user_id, generation, base, length, base_link, link, used, tail = row
        content = tail
        if not all(map(isinstance, row, _ROW_TYPES)):
            return _no_record(user, user_id)
        if length - base >= CHAIN_BLOCK:
            query = "SELECT events FROM blocks WHERE user = ? AND first >= ? ORDER BY first"
            blocks = [events for (events,) in self.db.execute(query, (user, base))]
            if not all(isinstance(events, bytes) for events in blocks):
                return _no_record(user, user_id)
            content = b"".join([*blocks, tail])
        return LogRecord(user_id, user, generation, base, length, base_link or user, link, used, content)

    def _together(self, changes: Sequence[Change]) -> list[Done | sqlite3.Error]:
        self._growth = growth = _Growth()
        done: list[Done | sqlite3.Error] = []
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                try:
                    done.append(self._apply(change))
                except sqlite3.Error as error:
                    if len(changes) > 1 and is_of_one(error):
                        raise _OneFailed from error
                    raise
                except Exception as defect:
                    if len(changes) > 1:
                        raise _OneFailed from defect
                    _log.exception("a change of the event log failed")
                    raise sqlite3.InternalError("a defect of the server") from defect
            if growth.users or growth.events:
                query = "UPDATE about SET users = users + ?, events = events + ?"
                self.db.execute(query, (growth.users, growth.events))
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise
        self._committed.users += growth.users
        self._committed.events += growth.events
        return done

    def _alone(self, change: Change) -> Done | sqlite3.Error:
        try:
            return self._together((change,))[0]
        except sqlite3.Error as error:
            return error

    def _apply(self, change: Change) -> Done:
        match change:
            case Put():
                return self._put(change)
            case Touch(user, used):
                changed = self.db.execute("UPDATE users SET used = ? WHERE user = ? AND used < ?", (used, user, used))
                return Done(changed.rowcount == 1)
            case Delete():
                return self._delete(change)
            case FindId(user, name):
                return Done(applied=False, written=self.append_record(user, name))
            case Quarantine():
                return self._quarantine(change)
            case Expire(before, most, moved_before):
                query = "SELECT user, id FROM append_ids WHERE written < ? ORDER BY written LIMIT ?"
                old = self.db.execute(query, (before, most)).fetchall()
                self.db.executemany("DELETE FROM append_ids WHERE user = ? AND id = ?", old)
                for table in ("quarantine", "quarantine_blocks"):
                    self.db.execute(f"DELETE FROM {table} WHERE moved < ?", (moved_before,))
                return Done(bool(old))

    def _put(self, put: Put) -> Done:
        before, after = put.before, put.after
        if put.append_id is not None:
            written = self.append_record(after.user, put.append_id.name)
            if written is not None:
                return Done(applied=False, written=written)
        user, whole = after.user, len(after.events) // CHAIN_BLOCK * CHAIN_BLOCK
        base_link = after.links[:LINK_BYTES] if after.base else b""
        tail = after.events[whole:].tobytes()
        now = (after.generation, after.base, len(after), base_link, after.version, tail)
        if before.generation:
            changed = self.db.execute(
                "UPDATE users SET user_id = ?, generation = ?, base = ?, length = ?, base_link = ?, link = ?, tail = ? "
                "WHERE user = ? AND generation = ? AND length = ? AND link = ?",
                (after.user_id, *now, user, before.generation, len(before), before.version),
            )
        else:
            changed = self.db.execute(
                "INSERT INTO users (generation, base, length, base_link, link, tail, user, user_id, used) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*now, user, after.user_id, put.used),
            )
            self._growth.users += changed.rowcount
        if changed.rowcount != 1:
            return Done(applied=False)
        if before.generation:  # apart, and seldom: it changes the index of these times, a page more
            query = "UPDATE users SET used = ? WHERE user = ? AND used < ?"
            self.db.execute(query, (put.used, user, put.used - put.step_s))
        self._growth.events += len(after.events) - len(before.events)
        self._put_blocks(before, after, after.base + whole)
        if put.append_id is not None:
            known = put.append_id
            self.db.execute(
                "REPLACE INTO append_ids (user, id, written, record) VALUES (?, ?, ?, ?)",
                (user, known.name, known.written, known.record),
            )
        return Done()

    def _put_blocks(self, before: History, after: History, stop: int) -> None:
        """Make the whole blocks before position `stop` those of `after`."""
        blocks_stop = before.base + len(before.events) // CHAIN_BLOCK * CHAIN_BLOCK
        if before.base < after.base and blocks_stop > before.base:
            self.db.execute("DELETE FROM blocks WHERE user = ? AND first < ?", (after.user, after.base))
        if blocks_stop > stop:
            self.db.execute("DELETE FROM blocks WHERE user = ? AND first >= ?", (after.user, stop))
        first = first_difference(before, after)
        content = after.events[first - after.base : stop - after.base].tobytes() if first < stop else b""
        self.db.executemany(
            "REPLACE INTO blocks (user, first, events) VALUES (?, ?, ?)",
            (
                (after.user, first + at // EVENT_DTYPE.itemsize, content[at : at + _BLOCK_BYTES])
                for at in range(0, len(content), _BLOCK_BYTES)
            ),
        )

    def _quarantine(self, change: Quarantine) -> Done:
        row = self.db.execute(f"SELECT {_ROW} FROM users WHERE user = ?", (change.user,)).fetchone()
        record = None if row is None else self._record(row)
        if record is None or record.history() is not None:  # another life has begun meanwhile
            return Done(applied=False)
        moved = (change.now, change.user)
        self.db.execute(f"INSERT INTO quarantine SELECT ?, {_ROW} FROM users WHERE user = ?", moved)
        blocks = "INSERT INTO quarantine_blocks SELECT ?, user, first, events FROM blocks WHERE user = ?"
        self.db.execute(blocks, moved)
        return self._end_life(Delete(change.user))

    def _delete(self, change: Delete) -> Done:
        """With what was moved away, which is the user's as well."""
        done = self._end_life(change)
        if done.applied or change.used_before is None:
            for table in ("quarantine", "quarantine_blocks"):
                self.db.execute(f"DELETE FROM {table} WHERE user = ?", (change.user,))
        return done

    def _end_life(self, change: Delete) -> Done:
        query = "SELECT generation, length - base, used FROM users WHERE user = ?"
        row = self.db.execute(query, (change.user,)).fetchone()
        if row is None or (change.used_before is not None and row[2] >= change.used_before):
            return Done(applied=False)
        for table in ("users", "blocks", "append_ids"):
            self.db.execute(f"DELETE FROM {table} WHERE user = ?", (change.user,))
        self._growth.users -= 1
        self._growth.events -= row[1]
        return Done(generation=row[0])


def first_difference(before: History, after: History) -> int:
    """The start of the first block of `after` that is not a whole block of `before` too: all blocks before it are equal
    in both.
    """
    start = max(before.base, after.base)
    if not before.generation or before.generation != after.generation or start > min(len(before), len(after)):
        return after.base
    ours = after.links[(start - after.base) // CHAIN_BLOCK * LINK_BYTES :]
    theirs = before.links[(start - before.base) // CHAIN_BLOCK * LINK_BYTES :]
    shared = 0
    while ours[shared : shared + LINK_BYTES] == theirs[shared : shared + LINK_BYTES] != b"":
        shared += LINK_BYTES
    return start + (shared // LINK_BYTES - 1) * CHAIN_BLOCK if shared and start == after.base else after.base


class _OneFailed(Exception):
    """A change of several failed by itself."""


def _totals(*counts: object) -> Totals:
    """Counts that damage may have made anything of: all users share them, so none of them may fail by that."""
    users, events = (max(0, count) if isinstance(count, int) else 0 for count in counts)
    return Totals(users, events)


def _inode(file: Path) -> int:
    """Number of what is at a path now, -1 if nothing is. Opens nothing: see `FileStore.open`."""
    try:
        return file.stat().st_ino
    except FileNotFoundError:
        return -1


def _connect(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda raw: raw.decode(errors="replace")  # damage may make any bytes a text
    return db


def _no_record(user: bytes, user_id: object) -> LogRecord:
    """One that proves nothing."""
    return LogRecord(str(user_id), user, b"", 0, 0, b"", b"", 0, b"")


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("SELECT format FROM about").fetchone()
    if version != FORMAT:
        raise ConfigError(f"log_dir: {path}: got format {version}, must be {FORMAT}")


@contextlib.contextmanager
def _reading(db: sqlite3.Connection) -> Iterator[None]:
    """One moment for all statements inside."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:
            db.execute("COMMIT")

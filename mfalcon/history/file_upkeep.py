"""What keeps an event log in a file in order beside its writer: the journal, the age of users, damage."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfalcon.history.file_store import FILE_NAME, FileStore

JOURNAL_BYTES = 64 << 20
"""Of the journal, after which its pages are moved into the file."""
_ROUNDS = 3
_VERIFY_USERS = 64


@dataclass(frozen=True, slots=True)
class Look:
    """What was found. oldest: when the user who was not asked for longest was. idle: hash of users who may go, and when
    they were asked for. may_truncate: the journal's pages are in the file, but for those that came meanwhile or
    that somebody reads.
    """

    file_bytes: int
    journal_bytes: int
    oldest: int | None
    idle: Sequence[tuple[bytes, int]]
    may_truncate: bool


class FileUpkeep:
    """Two connections of its own. Belongs to one thread at a time. Its methods raise sqlite3.Error."""

    def __init__(self, directory: Path) -> None:
        self._journal = directory / f"{FILE_NAME}-wal"
        self._reader = FileStore.open_to_read(directory)
        self._store = FileStore.open(directory)
        self._verified_to = b""

    def look(self, *, move: bool, sync: bool, used_before: int, most: int) -> Look:
        """move: the journal into the file, also if it is small. sync: have the disk hold what was committed.

        used_before, most: how many users to name who were not asked for since then.
        """
        if sync:
            self._sync()
        may_truncate = move or self._journal_bytes() > JOURNAL_BYTES
        if may_truncate:
            # What writers add meanwhile is less each time, so that little is left to be moved while they wait.
            for _ in range(_ROUNDS):
                if self._store.checkpoint(truncate=False):
                    break
        idle = self._reader.idle(used_before, most) if most else ()
        size, journal = self._reader.file_bytes(), self._journal_bytes()
        return Look(size, journal, self._reader.oldest(), idle, may_truncate)

    def verify(self) -> tuple[int, list[str]]:
        """Check the next users' logs: how many, 0 when all have been checked, and the ids of those that are damaged."""
        records = self._reader.scan(self._verified_to, _VERIFY_USERS)
        if records:
            self._verified_to = records[-1].user
        return len(records), [record.user_id for record in records if record.history() is None]

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        self._store.close()

    def _sync(self) -> None:
        try:
            descriptor = os.open(self._journal, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _journal_bytes(self) -> int:
        try:
            return self._journal.stat().st_size
        except FileNotFoundError:
            return 0

"""Any values in the rows of a user in the event log's file: each a number, a text or bytes; and any bytes as the file.

The first byte is the column that is changed, or, from 128 on, says that the file itself begins with what follows.
"""

import shutil
import sqlite3
from functools import cache
from pathlib import Path

from mfalcon.errors import ConfigError, DamagedLog, StorageUnavailable
from mfalcon.history.file_log import FileLog
from mfalcon.history.file_store import FILE_NAME, FileStore
from mfalcon.history.history import no_history
from mfalcon.types import Append
from tests.fuzz.files import directory
from tests.fuzz.loop import run
from tests.history.logs import opened
from tests.small import random_events

COLUMNS = ("user_id", "generation", "base", "length", "base_link", "link", "used", "tail", "blocks")
KINDS = ("blob", "text", "integer", "real", "null")


@cache
def good() -> Path:
    """A log with two users."""

    async def write() -> Path:
        path = directory("log") / "good"
        path.mkdir()
        async with opened("file", path) as one:
            for user_id in ("ann", "eve"):
                await one.log.append(user_id, Append(random_events(40)), None)
        return path

    return run(write())


def seeds() -> list[bytes]:
    """What the columns hold, and the first pages of the file."""
    db = sqlite3.connect(good() / FILE_NAME)
    row = db.execute(f"SELECT {', '.join(COLUMNS[:-1])} FROM users LIMIT 1").fetchone()
    db.close()
    values = []
    for number, value in enumerate(row):
        kind = 0 if isinstance(value, bytes) else 1 if isinstance(value, str) else 2
        content = value if isinstance(value, bytes) else str(value).encode()
        values.append(bytes((number, kind)) + content)
    return [*values, b"\x80\0" + (good() / FILE_NAME).read_bytes()[:512]]


def target(data: bytes) -> None:
    """The user's history or DamagedLog, and the other user's history in any case; of a file, also ConfigError."""
    if len(data) < 2:
        return
    path = directory("log") / "fuzzed"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good(), path)
    if data[0] >= 128:
        _read_file(path, data[2:])
    else:
        _read_row(path, COLUMNS[data[0] % len(COLUMNS)], _value(KINDS[data[1] % len(KINDS)], data[2:]))


def _value(kind: str, raw: bytes) -> bytes | str | int | float | None:
    match kind:
        case "blob":
            return raw
        case "text":
            return raw.decode("latin-1")
        case "integer":
            return int.from_bytes(raw[:8], "little", signed=True)
        case "real":
            return int.from_bytes(raw[:4], "little") / 7
        case _:
            return None


def _read_row(path: Path, column: str, value: bytes | str | int | float | None) -> None:
    db = sqlite3.connect(path / FILE_NAME)
    user = no_history("eve").user
    try:
        if column == "blocks":
            db.execute("UPDATE blocks SET events = ? WHERE user = ?", (value, user))
        else:
            db.execute(f"UPDATE users SET {column} = ? WHERE user = ?", (value, user))
        db.commit()
    except sqlite3.IntegrityError:  # the file takes no null there
        return
    finally:
        db.close()

    store = FileStore.open_to_read(path)
    try:
        for user_id in ("eve", "ann"):
            record = store.read(no_history(user_id).user)
            history = None if record is None else record.history()
            assert user_id == "eve" or (history is not None and len(history) == 40)
        store.idle(2**40, 9)
        store.scan(b"", 9)
        store.oldest()
    finally:
        store.close()


def _read_file(path: Path, begin: bytes) -> None:
    content = (path / FILE_NAME).read_bytes()
    (path / FILE_NAME).write_bytes(begin + content[len(begin) :])

    async def read() -> None:
        async with opened("file", path) as one:
            assert isinstance(one.log, FileLog)
            for user_id in ("eve", "ann"):
                try:
                    await one.log.read(user_id, 60)
                except (DamagedLog, StorageUnavailable):
                    continue

    try:
        run(read())
    except ConfigError:
        return

"""How far a stream has been acknowledged, in a file that survives a crash.

Before a window is sent the file says where it ends, so that after a crash exactly that window is sent again first: its
appends then have the names that the server remembers.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from mfalcon.errors import ConfigError, DataError

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one stream. name: as it was ingested. acknowledged: the place up to which all events are in the log. sending:
    the end of the window that was being sent; `acknowledged` where none was. head: a hash of the stream's beginning, by
    which another one under the same name is known. num_events, num_rejected: acknowledged and left out until there.
    rejects_bytes: of the file of what was left out.
    """

    name: str
    acknowledged: int = 0
    sending: int = 0
    head: str = ""
    num_events: int = 0
    num_rejected: int = 0
    rejects_bytes: int = 0


def read(path: Path, name: str) -> Progress:
    """What the file says of a stream; the beginning if there is no file. Raises DataError for a file that is of another
    stream, or no such file.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Progress(name)
    except OSError as error:
        raise DataError(f"--progress: cannot read {path}: {error.strerror}") from error
    try:
        fields = orjson.loads(raw)
        if fields.pop("format") != FORMAT:
            raise ValueError
        progress = Progress(**fields)
        numbers = (progress.acknowledged, progress.sending, progress.num_events, progress.num_rejected)
        if not all(type(number) is int and number >= 0 for number in (*numbers, progress.rejects_bytes)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--progress: {path} is no file of `mfalcon ingest`; name another one, or remove it") from error
    if progress.name != name:
        raise DataError(f"--progress: {path} is of the stream {progress.name!r}, not of {name!r}")
    return progress


def write(path: Path, progress: Progress) -> None:
    """Replace the file, durably. Raises DataError."""
    fields = {name: getattr(progress, name) for name in Progress.__dataclass_fields__}
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            file.write(orjson.dumps({"format": FORMAT} | fields, option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise DataError(
            f"--progress: cannot write {path}: {error.strerror}; mend that and run it again: nothing is lost"
        ) from error


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other process goes on with this file meanwhile. Raises ConfigError if one does, DataError if it cannot be
    known.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        file = lock.open("ab")
    except OSError as error:
        raise DataError(f"--progress: cannot write {lock}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--progress: another process goes on with {path}") from error
        yield

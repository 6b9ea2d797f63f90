"""Event logs as files that others read and write: JSON lines, which need nothing, and Parquet, which needs polars.

JSON lines: a user a line. Parquet: a row an event, and a directory of files of some million rows, no user in two of
them. Both hold what a history is verified by; a file that others made needs user_id and events alone.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mfalcon.clock import is_plausible, unit_of
from mfalcon.errors import DataError
from mfalcon.history.chain import CHAIN_BLOCK, LINK_BYTES, user_hash
from mfalcon.history.history import History
from mfalcon.history.record import GENERATION_BYTES, LogRecord
from mfalcon.types import EVENT_DTYPE, MAX_TIME_MS, MAX_USER_ID_BYTES, Events

ROWS_A_FILE = 1_000_000
_FIELDS = ("item_id", "actions", "value", "time_ms")
_DAY_MS = 86_400_000
_PROOF = ("user", "generation", "base", "base_link", "version")


def write_jsonl(histories: Iterable[History], path: Path) -> int:
    """Write histories as JSON lines; returns how many. Raises OSError."""
    num = 0
    with path.open("wb") as file:
        for history in histories:
            line = {
                "user_id": history.user_id,
                "user": history.user.hex(),
                "generation": history.generation.hex(),
                "base": history.base,
                "base_link": history.links[:LINK_BYTES].hex(),
                "version": history.version.hex(),
                "events": history.events.tolist(),
            }
            file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            num += 1
    return num


def read_jsonl(path: Path) -> Iterator[History]:
    """The histories of a file of JSON lines, in its order. Raises DataError, which names the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}: line {number}"
            try:
                found = orjson.loads(line)
                rows = [tuple(row) for row in found.get("events", ())]
                events = np.array(rows, dtype=EVENT_DTYPE) if rows else np.empty(0, dtype=EVENT_DTYPE)
            except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"{where}: is no object with user_id and events, each [item_id, actions, value, time_ms]: {error}"
                ) from error
            yield _history(where, found, events)


def write_parquet(histories: Iterable[History], directory: Path) -> int:
    """Write histories as Parquet files of a new directory; returns how many. Raises OSError."""
    import polars as pl  # noqa: PLC0415 (of an extra)

    directory.mkdir(parents=True)
    num, rows, waiting = 0, 0, list[History]()

    def flush() -> None:
        lengths = [len(history.events) for history in waiting]
        events = np.concatenate([np.empty(0, dtype=EVENT_DTYPE), *(history.events for history in waiting)])
        one_each = pl.DataFrame(
            {
                "user_id": [history.user_id for history in waiting],
                "user": [history.user.hex() for history in waiting],
                "generation": [history.generation.hex() for history in waiting],
                "base": [history.base for history in waiting],
                "base_link": [history.links[:LINK_BYTES].hex() for history in waiting],
                "version": [history.version.hex() for history in waiting],
            }
        )
        frame = one_each[np.repeat(np.arange(len(waiting)), lengths)]
        position = np.concatenate([np.arange(history.base, len(history)) for history in waiting])
        columns = {"position": position, **{name: np.ascontiguousarray(events[name]) for name in _FIELDS}}
        part = directory / f"part-{len(list(directory.iterdir())):05}.parquet"
        frame.with_columns(**{name: pl.Series(name, values) for name, values in columns.items()}).write_parquet(part)
        waiting.clear()

    for history in histories:
        waiting.append(history)
        num, rows = num + 1, rows + len(history.events)
        if rows >= ROWS_A_FILE:
            flush()
            rows = 0
    if waiting:
        flush()
    return num


def read_parquet(path: Path) -> Iterator[History]:
    """The histories of a Parquet file, or of a directory of them. All rows of a user are in one file, in their order.
    Raises DataError, which names the file.
    """
    import polars as pl  # noqa: PLC0415 (of an extra)

    types = {"item_id": pl.Int64, "actions": pl.UInt32, "value": pl.Float32, "time_ms": pl.Int64}
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else (path,):
        try:
            frame = pl.read_parquet(file)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        except pl.exceptions.PanicException as error:  # no Exception: a damaged page of a file is enough
            raise DataError(f"{file}: cannot be read: it is damaged") from error
        if missing := [name for name in ("user_id", *_FIELDS) if name not in frame.columns]:
            raise DataError(f"{file}: has no column {missing[0]!r}, its columns are {', '.join(frame.columns)}")
        for _, rows in frame.group_by("user" if "user" in frame.columns else "user_id", maintain_order=True):
            user_id = rows["user_id"][0]
            where = f"{file}: user {user_id!r}"
            events = np.empty(len(rows), dtype=EVENT_DTYPE)
            for name, kind in types.items():
                column = rows[name]
                try:
                    events[name] = column.cast(kind).to_numpy()
                except (pl.exceptions.PolarsError, ValueError) as error:
                    raise DataError(f"{where}: column {name}: {error}") from error
                if column.null_count():
                    raise DataError(f"{where}: column {name}: got no value, must be one in every row")
            known = {name: rows[name][0] for name in _PROOF if name in frame.columns}
            yield _history(where, {"user_id": user_id, **known}, events)


def _history(where: str, found: dict[str, Any], events: Events) -> History:
    """A verified history of what a file says of a user. Raises DataError."""
    user_id, base = found.get("user_id"), found.get("base", 0)
    times = events["time_ms"]
    if not len(events) or not np.isfinite(events["value"]).all():
        raise DataError(f"{where}: events: must be one or more, with finite values")
    if times.min() < 0 or times.max() > MAX_TIME_MS or (times[1:] < times[:-1]).any():
        raise DataError(f"{where}: time_ms: must be from 0 to {MAX_TIME_MS}, and none before the one above it")
    # What a log held was checked when it was appended.
    if not found.get("version") and not (plausible := is_plausible(times, _DAY_MS)).all():
        time_ms = int(times[~plausible][0])
        must = f"milliseconds since 1970{unit}" if (unit := unit_of(time_ms)) else "at most a day after now"
        raise DataError(f"{where}: time_ms: got {time_ms}, must be {must}")
    try:
        user, generation, link, version = (
            bytes.fromhex(found.get(name, "")) for name in ("user", "generation", "base_link", "version")
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {', '.join(_PROOF)}: must be hex digits, base a number: {error}") from error
    is_known = isinstance(user_id, str) and 1 <= len(user_id.encode(errors="replace")) <= MAX_USER_ID_BYTES
    # A log that came from Redis says whose it is by the hash alone.
    if not is_known and (user_id != "" or len(user) != LINK_BYTES):
        raise DataError(f"{where}: user_id: got {user_id!r:.80}, must be 1 to {MAX_USER_ID_BYTES} bytes of text")
    if not isinstance(base, int) or base < 0 or base % CHAIN_BLOCK or (base and len(link) != LINK_BYTES):
        raise DataError(f"{where}: base: got {base!r}, must be a multiple of {CHAIN_BLOCK}, with its base_link")
    if len(generation) not in (0, GENERATION_BYTES):
        raise DataError(f"{where}: generation: got {len(generation)} bytes, must be {GENERATION_BYTES} or none")
    user = user_hash(user_id) if is_known and isinstance(user_id, str) else user
    record = LogRecord(
        str(user_id),
        user,
        generation or os.urandom(GENERATION_BYTES),
        base,
        base + len(events),
        link if base else user,
        version,
        0,
        events.tobytes(),
    )
    history = record.unverified()
    if version and version != history.version:
        raise DataError(f"{where}: version: got {version.hex()}, must be {history.version.hex()}, that of its events")
    return history

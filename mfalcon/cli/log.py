"""`mfalcon log`: look at, check, copy, fill and move the event log of a server that keeps it in a file."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mfalcon.cli.log_migrate import RedisPlace, read_secret, to_file, to_redis
from mfalcon.cli.output import JsonOption, print_json
from mfalcon.clock import seconds_now
from mfalcon.errors import ConfigError, DataError
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.exchange import read_jsonl, read_parquet, write_jsonl, write_parquet
from mfalcon.history.file_store import FILE_NAME, FileStore
from mfalcon.history.file_tools import add, histories, records

app = typer.Typer(help="Look at, check, copy, fill and move an event log in a file.", no_args_is_help=True)

DirectoryArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="Directory of the log, `--log-dir` of its server.")
]
_NAMED = 20


@app.callback()
def root() -> None:
    """Look at, check, copy, fill and move an event log in a file."""


@app.command()
def stats(directory: DirectoryArgument, json_output: JsonOption = False) -> None:
    """What a log holds; a server may write to it meanwhile."""
    with _reading(directory) as store:
        totals, oldest = store.totals(), store.oldest()
        size = store.file_bytes()
    journal = directory / f"{FILE_NAME}-wal"
    found = {
        "users": totals.users,
        "events": totals.events,
        "file_bytes": size,
        "journal_bytes": journal.stat().st_size if journal.exists() else 0,
        "bytes_a_user": round(size / max(1, totals.users), 1),
        "oldest_seconds": None if oldest is None else max(0, seconds_now() - oldest),
    }
    if json_output:
        print_json(found)
        return
    table = Table(show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), "-" if value is None else f"{value:,}")
    Console().print(table)


@app.command()
def verify(
    directory: DirectoryArgument,
    pages: Annotated[bool, typer.Option("--pages", help="Check how SQLite's pages hang together too.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Read every history and hold its events against their own hash; exit code 1 if one is damaged. A server may write
    to the log meanwhile.
    """
    num, damaged, broken = 0, list[str](), list[str]()
    with _reading(directory) as store:
        for record in records(store):
            num += 1
            if record.history() is None:
                damaged.append(record.user_id or record.user.hex())
        if pages:
            found = [row[0] for row in store.db.execute("PRAGMA quick_check(100)")]
            broken = [] if found == ["ok"] else found
    if json_output:
        print_json({"users": num, "damaged": damaged, "pages": broken})
    else:
        for user_id in damaged[:_NAMED]:
            typer.echo(f"damaged: {user_id}")
        for complaint in broken[:_NAMED]:
            typer.echo(f"pages: {complaint}")
        typer.echo(f"{num:,} users, {len(damaged):,} of them damaged")
    if damaged or broken:
        raise typer.Exit(1)


@app.command()
def backup(
    directory: DirectoryArgument,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A new directory, which a server may start from.")],
) -> None:
    """Copy a log as of one moment, while a server writes to it; its journal grows until the copy is done."""
    if target.exists():
        raise ConfigError(f"{target}: there is something already, must be a new directory")
    with _reading(directory) as store:
        target.mkdir(mode=0o700, parents=True)
        store.backup(target / FILE_NAME)
    (target / FILE_NAME).chmod(0o600)
    with _reading(target) as copy:
        typer.echo(f"{copy.totals().users:,} users in {target}")


@app.command("export")
def export_log(
    directory: DirectoryArgument,
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A new file .jsonl, or a new directory for Parquet files.")
    ],
) -> None:
    """Write every history as JSON lines, or as Parquet (needs the extra: data), while a server writes to the log."""
    if target.exists():
        raise ConfigError(f"{target}: there is something already, must be new")
    with _reading(directory) as store:
        write = write_jsonl if target.suffix == ".jsonl" else write_parquet
        num = write(histories(store), target)
    typer.echo(f"{num:,} users in {target}")


@app.command("import")
def import_log(
    directory: DirectoryArgument,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A file .jsonl or .parquet, or a directory of Parquet files.")
    ],
) -> None:
    """Add histories of users who have none here, which no server may use meanwhile. A file of yours needs user_id and
    events: item_id, actions, value, time_ms. Exit code 1 if a user has another history here, which is left as it is.
    """
    if not source.exists():
        raise DataError(f"{source}: there is no such file")
    lock = DirectoryLock(directory)
    try:
        store = FileStore.open(directory)
        try:
            told = add(store, read_jsonl(source) if source.suffix == ".jsonl" else read_parquet(source))
            store.checkpoint(truncate=True)
        except sqlite3.Error as error:
            raise DataError(f"{directory}: cannot be written: {error}; what was added before stays") from error
        finally:
            store.close()
    finally:
        lock.release()
    typer.echo(f"{told.added:,} users added, {told.same:,} were there already")
    if told.kept:
        typer.echo(f"{len(told.kept):,} have another history here: {', '.join(told.kept[:_NAMED])}")
        raise typer.Exit(1)


@app.command()
def migrate(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Directory of a log, or URL of a Redis.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="The other one.")],
    redis_prefix: Annotated[str, typer.Option(help="First part of the keys in Redis, as of its servers.")] = "mfalcon",
    redis_secret_file: Annotated[Path | None, typer.Option(help="File with the secret that signs logs there.")] = None,
    once: Annotated[
        bool, typer.Option("--once", help="From a file: end when a pass finds nothing, though its server still runs.")
    ] = False,
    delete_others: Annotated[
        bool, typer.Option("--delete-others", help="Delete what the target alone has: users, and other lives of users.")
    ] = False,
) -> None:
    """Move all histories from a file to Redis or back while servers use the first: copy, follow, and end when nobody
    writes to it any more (docs/operations.md, "Moving a log"). Exit code 1 if a history could not be moved.
    """
    is_url = ["://" in text for text in (source, target)]
    if sum(is_url) != 1:
        raise ConfigError("FROM, TO: must be the directory of a log and the URL of a Redis")
    directory, url = (target, source) if is_url[0] else (source, target)
    secret = None if redis_secret_file is None else read_secret(redis_secret_file)
    place = RedisPlace(url, redis_prefix, secret)
    if is_url[0]:
        moving = to_file(place, Path(directory), delete_others=delete_others, say=typer.echo)
    else:
        moving = to_redis(Path(directory), place, once=once, delete_others=delete_others, say=typer.echo)
    if not asyncio.run(moving):
        raise typer.Exit(1)


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[FileStore]:
    """A connection that only reads; what SQLite cannot do is told as ours."""
    if not (directory / FILE_NAME).is_file():
        raise ConfigError(f"{directory}: holds no event log ({FILE_NAME})")
    store = FileStore.open_to_read(directory)
    try:
        yield store
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"{directory}: {error}") from error
    finally:
        store.close()

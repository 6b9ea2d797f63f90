"""The event log in a file: what it survives, and that what is wrong with one user or for a while stays that."""

import asyncio
import contextlib
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mfalcon.errors import ConfigError, DamagedLog, DeadlineExceeded, HistoryMismatch, InvalidInput, StorageUnavailable
from mfalcon.history.budget import LogBudget
from mfalcon.history.file_changes import Delete, Put
from mfalcon.history.file_store import FILE_NAME, PAGE_BYTES, FileStore, first_difference
from mfalcon.history.file_upkeep import FileUpkeep
from mfalcon.history.history import History, no_history
from mfalcon.types import Append
from tests.history.logs import opened
from tests.history.test_history import assert_is
from tests.history.test_logs import until
from tests.small import random_events


def history_of(user_id: str, count: int, seed: int = 0) -> History:
    return no_history(user_id, os.urandom(8)).extended(random_events(count, seed))


@contextmanager
def store_in(directory: Path) -> Iterator[FileStore]:
    directory.mkdir(exist_ok=True)
    store = FileStore.open(directory, fsync=False)
    try:
        yield store
    finally:
        store.close()


def put(store: FileStore, before: History, after: History) -> bool:
    (done,) = store.commit([Put(before, after, 1)])
    assert not isinstance(done, sqlite3.Error)
    return done.applied


def times_smaller(sizes: Sequence[int]) -> int:
    return sum(after < before for before, after in pairwise(sizes))


def as_dead(directory: Path, target: Path) -> Path:
    """What a process that was killed now leaves."""
    return shutil.copytree(directory, target)


async def test_what_is_acknowledged_survives_the_process(tmp_path: Path) -> None:
    said: dict[str, int] = {}
    async with opened("file-fsync", tmp_path / "log") as one:

        async def write(user_id: str) -> None:
            at = 0
            for number in range(8):
                events = random_events(5, number, at)
                at = int(events["time_ms"][-1])
                said[user_id] = (await one.log.append(user_id, Append(events), None)).history_len

        writers = [asyncio.create_task(write(f"user-{number}")) for number in range(20)]
        await asyncio.sleep(0.05)
        acknowledged = dict(said)
        as_dead(tmp_path / "log", tmp_path / "after")
        await asyncio.gather(*writers)
    async with opened("file-fsync", tmp_path / "after") as one:
        for user_id, length in acknowledged.items():
            assert len((await one.log.read(user_id, 5)).history) >= length


async def test_a_torn_end_of_the_journal_loses_what_was_not_acknowledged_alone(tmp_path: Path) -> None:
    async with opened("file", tmp_path / "log") as one:
        for number in range(10):
            await one.log.append(f"user-{number}", Append(random_events(3, number)), None)
        torn = as_dead(tmp_path / "log", tmp_path / "torn")
        before = (torn / f"{FILE_NAME}-wal").stat().st_size
        await one.log.append("user-0", Append(random_events(3, 1, 10**13)), None)
        longer = as_dead(tmp_path / "log", tmp_path / "longer")
    journal = longer / f"{FILE_NAME}-wal"
    size = journal.stat().st_size
    assert size > before
    for cut in (size - 1, size - PAGE_BYTES // 2, before + 30):
        copy = shutil.copytree(longer, tmp_path / f"cut-{cut}")
        with (copy / f"{FILE_NAME}-wal").open("r+b") as file:
            file.truncate(cut)
            file.seek(0, os.SEEK_END)
            file.write(os.urandom(100))  # what the disk had there
        async with opened("file", copy) as one:
            assert len((await one.log.read("user-0", 5)).history) == 3
            for number in range(10):
                assert len((await one.log.read(f"user-{number}", 5)).history) == 3
            told = await one.log.append("user-0", Append(random_events(3, 1, 10**13)), None)
            assert told.history_len == 6


async def test_a_damaged_row_is_a_fault_of_its_user_alone(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        for user_id in ("ann", "bob"):
            await one.log.append(user_id, Append(random_events(100)), None)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        user = no_history("ann").user
        (raw,) = db.execute("SELECT events FROM blocks WHERE user = ? AND first = 32", (user,)).fetchone()
        db.execute("UPDATE blocks SET events = ? WHERE user = ? AND first = 32", (raw[:9] + b"?" + raw[10:], user))
    db.close()
    async with opened("file", tmp_path) as one:
        for _ in range(2):
            with pytest.raises(DamagedLog, match=r"the event log of this user is damaged \(hash\)"):
                await one.log.read("ann", 5)
            with pytest.raises(DamagedLog, match=r"the event log of this user is damaged \(hash\)"):
                await one.log.append("ann", Append(random_events(1, 1, 10**13)), None)
        assert len((await one.log.read("bob", 5)).history) == 100
        await until(lambda: one.sample("damaged_users") == 1)
        assert await one.log.delete("ann", None)
        assert (await one.log.append("ann", Append(random_events(1)), None)).history_len == 1


async def test_a_damaged_log_may_be_moved_away(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", Append(random_events(40)), None)
        lost = (await one.log.read("ann", 5)).history
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE users SET tail = tail || x'00'")
    db.close()
    async with opened("file", tmp_path, on_damage="start-empty") as one:
        assert len((await one.log.read("ann", 5)).history) == 0
        assert [deletion.generation for deletion in one.evicted] == [lost.generation]
        assert (await one.log.append("ann", Append(random_events(3)), None)).history_len == 3
        assert len((await one.log.read("ann", 5)).history) == 3
        assert len(one.log) == 1
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        ((user_id, tail),) = db.execute("SELECT user_id, CAST(tail AS BLOB) FROM quarantine").fetchall()
        ((block,),) = db.execute("SELECT events FROM quarantine_blocks").fetchall()
        assert (user_id, block + tail) == ("ann", lost.events.tobytes() + b"\0")
        db.execute("UPDATE quarantine SET moved = 0")
    db.close()
    async with opened("file", tmp_path):
        await until(lambda: b"ann" not in rows_of(tmp_path, "quarantine"))


@pytest.mark.parametrize("begins_anew", [True, False])
async def test_a_deletion_takes_what_was_moved_away_too(tmp_path: Path, begins_anew: bool) -> None:
    async with opened("file", tmp_path) as one:
        for user_id in ("ann", "bob"):
            await one.log.append(user_id, Append(random_events(40)), None)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE users SET tail = tail || x'00'")
    db.close()
    async with opened("file", tmp_path, on_damage="start-empty") as one:
        for user_id in ("ann", "bob"):
            await one.log.read(user_id, 5)
        if begins_anew:
            await one.log.append("ann", Append(random_events(3)), None)
        assert bool(await one.log.delete("ann", None)) == begins_anew
        assert await one.log.delete("ann", None) == b""
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        bob = [(no_history("bob").user,)]
        assert db.execute("SELECT user FROM quarantine").fetchall() == bob
        assert db.execute("SELECT user FROM quarantine_blocks").fetchall() == bob
    db.close()


def rows_of(directory: Path, table: str) -> bytes:
    store = FileStore.open_to_read(directory)
    try:
        return repr(store.db.execute(f"SELECT * FROM {table}").fetchall()).encode()
    finally:
        store.close()


async def test_a_damaged_page_is_a_fault_of_the_users_on_it(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        for number in range(300):
            await one.log.append(f"user-{number}", Append(random_events(20, number)), None)
    file = tmp_path / FILE_NAME
    with sqlite3.connect(file) as db:
        query = "SELECT pageno FROM dbstat WHERE name = 'users' AND pagetype = 'leaf' ORDER BY pageno DESC LIMIT 1"
        try:
            (page,) = db.execute(query).fetchone()
        except sqlite3.OperationalError:
            pytest.skip("this SQLite cannot tell where its pages are")
    db.close()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * PAGE_BYTES)
        raw.write(os.urandom(PAGE_BYTES))
    async with opened("file", tmp_path) as one:
        bad, good = list[int](), list[int]()
        for number in range(300):
            try:
                history = (await one.log.read(f"user-{number}", 5)).history
                (good if len(history) == 20 else bad).append(number)
            except DamagedLog as error:
                assert "damaged" in str(error)
                bad.append(number)
        assert 1 <= len(bad) < 20
        await until(lambda: one.sample("damaged_users") >= 1)  # though the check cannot get past the page
        outcomes = await asyncio.gather(
            *(one.log.append(f"user-{number}", Append(random_events(1, 1, 10**13)), None) for number in (*good, *bad)),
            return_exceptions=True,
        )
        assert [told.history_len for told in outcomes[: len(good)]] == [21] * len(good)  # type: ignore[union-attr]
        assert all(isinstance(outcome, DamagedLog) for outcome in outcomes[len(good) :])


@pytest.mark.parametrize("count", [-(2**40), "x", b"x"])
async def test_damaged_counts_refuse_nobody(tmp_path: Path, count: object) -> None:
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", Append(random_events(10), append_id="a"), None)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE about SET users = ?, events = ?", (count, count))
    db.close()
    async with opened("file", tmp_path, LogBudget(max_users=9)) as one:
        for number in range(3):
            assert (await one.log.append(f"user-{number}", Append(random_events(1)), None)).history_len == 1
        await one.log.delete("ann", None)
        assert len(one.log) >= 0


@pytest.mark.parametrize("record", [5, 1.5, "x" * 40, b""])
async def test_a_damaged_record_of_an_append_is_told_to_who_asks_for_it_alone(tmp_path: Path, record: object) -> None:
    first = Append(random_events(10), append_id="a")
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", first, None)
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE append_ids SET record = ?", (record,))
    db.close()
    async with opened("file", tmp_path) as one:
        with pytest.raises(DamagedLog):
            await one.log.append("ann", first, None)
        assert (await one.log.append("ann", Append(random_events(1, 1, 10**13), append_id="b"), None)).history_len == 11


def test_a_damaged_page_spoils_no_other_change_of_its_commit(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        good, other = history_of("good", 3), history_of("other", 3)
        assert put(store, no_history("good"), good)
        longer = good.extended(random_events(1, 1, 10**13))
        store.db.execute(
            "CREATE TRIGGER damage BEFORE INSERT ON users WHEN NEW.user_id = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'as if it were damaged'); END"
        )
        bad = history_of("bad", 3)
        done = store.commit([Put(good, longer, 2), Put(no_history("bad"), bad, 2), Put(no_history("other"), other, 2)])
        assert [isinstance(each, sqlite3.Error) for each in done] == [False, True, False]
        assert store.grown(store.totals()).users == store.totals().users + 1
        assert store.totals().users == 2
        assert store.totals().events == 7


@dataclass(frozen=True, slots=True)
class Disk:
    """A directory whose disk can be filled, and what an append is told then."""

    directory: Path
    fill: Callable[[], None]
    free: Callable[[], None]
    says: str


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MiB, where one may be mounted; and a limit for the files of this process."""
    if request.param == "limit":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

        def fill() -> None:
            size = (tmp_path / f"{FILE_NAME}-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100_000, hard))

        def free() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        yield Disk(tmp_path, fill, free, "its disk (failed|is full); nothing was written")
        free()
        return
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no disk may be mounted here")

    def fill_up() -> None:
        with contextlib.suppress(OSError), (tmp_path / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4_096):
                pass

    yield Disk(tmp_path, fill_up, (tmp_path / "filler").unlink, "its disk is full; nothing was written")
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


async def test_a_full_disk_refuses_appends_and_heals_by_itself(disk: Disk) -> None:
    async with opened("file-fsync", disk.directory, cache_bytes=0) as one:
        for number in range(10):
            await one.log.append(f"user-{number}", Append(random_events(10, number)), None)
        disk.fill()
        refused, lengths = 0, {f"user-{number}": 10 for number in range(10)}
        for number in range(40):
            user_id = f"user-{number % 10}"
            try:
                told = await one.log.append(user_id, Append(random_events(200, number, (number + 2) * 10**12)), None)
                lengths[user_id] = told.history_len
            except StorageUnavailable as error:
                assert re.search(disk.says, str(error))
                assert not error.may_be_done
                refused += 1
            assert len((await one.log.read(user_id, 5)).history) == lengths[user_id]
        assert refused > 20
        disk.free()
        told = await one.log.append("user-3", Append(random_events(1, 1, 10**14)), None)
        assert told.history_len == lengths["user-3"] + 1
        assert one.sample("failed_total", reason="full") + one.sample("failed_total", reason="error") == refused
    async with opened("file", disk.directory) as one:
        for user_id, length in lengths.items():
            assert len((await one.log.read(user_id, 5)).history) == length + (user_id == "user-3")


@pytest.mark.parametrize("what", ["", "-wal", "-shm"])
async def test_a_file_that_is_deleted_takes_nothing_that_would_be_lost(tmp_path: Path, what: str) -> None:
    file, aside = tmp_path / f"{FILE_NAME}{what}", tmp_path / "aside"
    async with opened("file", tmp_path, cache_bytes=0) as one:
        await one.log.append("ann", Append(random_events(10)), None)
        file.rename(aside)
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match=r"its file is gone; nothing was written$") as caught:
                await one.log.append("ann", Append(random_events(1, 1, 10**13)), None)
            assert not caught.value.may_be_done
            with pytest.raises(StorageUnavailable, match="its file is gone"):
                await one.log.delete("ann", None)
            assert len((await one.log.read("ann", 5)).history) == 10
            file.write_bytes(b"something else")
        aside.rename(file)
        assert (await one.log.append("ann", Append(random_events(1, 1, 10**13)), None)).history_len == 11


async def test_a_read_that_fails_tells_nobody_what_sqlite_says(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", Append(random_events(10)), None)
        for _ in range(4):
            with sqlite3.connect(tmp_path / FILE_NAME) as db:
                db.execute("ALTER TABLE users RENAME TO other")
            db.close()
            with pytest.raises(StorageUnavailable, match=r"^the event log cannot be read: its disk failed$"):
                await one.log.read("bob", 5)
            with sqlite3.connect(tmp_path / FILE_NAME) as db:
                db.execute("ALTER TABLE other RENAME TO users")
            db.close()
            assert not len((await one.log.read("bob", 5)).history)


async def test_a_second_server_is_refused(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", Append(random_events(1)), None)
        with pytest.raises(ConfigError, match=rf"log_dir: .* is in use by process {os.getpid()}, must be that of one"):
            async with opened("file", tmp_path):
                pass
        assert (await one.log.append("ann", Append(random_events(1, 1, 10**13)), None)).history_len == 2
    async with opened("file", tmp_path) as one:
        assert len((await one.log.read("ann", 5)).history) == 2


async def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1_000)
    with pytest.raises(ConfigError, match=r"log_dir: .* cannot be used: file is not a database"):
        async with opened("file", tmp_path):
            pass
    (tmp_path / FILE_NAME).unlink()
    async with opened("file", tmp_path):
        pass
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("UPDATE about SET format = 99")
    db.close()
    with pytest.raises(ConfigError, match="got format 99, must be 1"):
        async with opened("file", tmp_path):
            pass
    taken = tmp_path / "taken"
    taken.write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"):
        async with opened("file", taken):
            pass


async def test_deleted_events_are_gone_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.history.file_keeper.ERASE_S", 0.1)
    secret = random_events(40)
    secret["item_id"] = int.from_bytes(b"SECRET!!", "little")
    async with opened("file", tmp_path) as one:
        for number in range(30):
            await one.log.append(f"user-{number}", Append(random_events(40, number)), None)
        await one.log.append("ann", Append(secret), None)
        assert b"SECRET!!" in on_disk(tmp_path)
        await one.log.delete("ann", None)
        await until(lambda: b"SECRET!!" not in on_disk(tmp_path))
        assert len((await one.log.read("user-3", 5)).history) == 40


def on_disk(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.iterdir()))


async def test_a_deadline_tells_what_was_done(tmp_path: Path) -> None:
    async with opened("file", tmp_path) as one:
        await one.log.append("ann", Append(random_events(1)), None)
        with pytest.raises(DeadlineExceeded, match="nothing was written") as caught:
            await one.log.append("ann", Append(random_events(1, 1, 10**13)), time.monotonic() - 1)
        assert not caught.value.may_be_done
        blocker = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")  # the disk stands still
        try:
            late = [
                asyncio.create_task(
                    one.log.append("ann", Append(random_events(1, 1, 10**13), length), time.monotonic() + 0.3)
                )
                for length in (1, 2)
            ]
            await asyncio.sleep(0.1)
            withdrawn = asyncio.create_task(
                one.log.append("bob", Append(random_events(1, 1, 10**13)), time.monotonic() + 0.2)
            )
            outcomes = await asyncio.gather(*late, withdrawn, return_exceptions=True)
            assert all(isinstance(outcome, DeadlineExceeded) for outcome in outcomes)
            assert len((await one.log.read("ann", 5)).history) == 1
        finally:
            blocker.execute("ROLLBACK")
            blocker.close()
        said = {str(outcome).rpartition("; ")[2] for outcome in outcomes}
        assert said <= {"it may have been written all the same", "nothing was written"}
        assert [outcome.may_be_done for outcome in outcomes][-1] is False  # type: ignore[union-attr]
        told = await one.log.append("ann", Append(random_events(1, 1, 10**14)), None)
        done = sum(outcome.may_be_done for outcome in outcomes)  # type: ignore[union-attr]
        assert told.history_len == 2 + done
        assert len((await one.log.read("bob", 5)).history) == 0


async def test_a_named_append_is_done_once(tmp_path: Path) -> None:
    events = random_events(5)
    async with opened("file", tmp_path) as one:
        first = await one.log.append("ann", Append(events, append_id="first"), None)
        both = await asyncio.gather(
            *(one.log.append("ann", Append(random_events(2, 3, 10**13), append_id="second"), None) for _ in range(2))
        )
        assert sorted(told.was_written for told in both) == [False, True]
        assert {told.history_len for told in both} == {7}
        again = await one.log.append("ann", Append(events, append_id="first"), None)
        assert (again.was_written, again.history_len, again.version) == (True, 5, first.version)
        with pytest.raises(HistoryMismatch):
            await one.log.append("ann", Append(events, 0, append_id="third"), None)
        with pytest.raises(InvalidInput, match="append_id: got 'first', must be another one"):
            await one.log.append("ann", Append(random_events(1, 1, 10**13), append_id="first"), None)
    async with opened("file", tmp_path) as one:
        again = await one.log.append("ann", Append(events, 0, append_id="first"), None)
        assert (again.was_written, again.history_len, again.version) == (True, 5, first.version)
        assert len((await one.log.read("ann", 5)).history) == 7
        await one.log.delete("ann", None)
        assert not (await one.log.append("ann", Append(events, append_id="first"), None)).was_written


@pytest.mark.parametrize("at", [0, 1, 31, 32, 40, 64, 99])
def test_any_history_may_take_the_place_of_another(tmp_path: Path, at: int) -> None:
    """An event that goes between others changes the blocks from there on, and no other."""
    before = history_of("ann", 100)
    events = before.events.copy()
    events["item_id"][at:] += 1
    after = no_history("ann", before.generation).extended(np.concatenate([events, events[-1:]]))
    assert first_difference(before, after) == at // 32 * 32
    with store_in(tmp_path) as store:
        assert put(store, no_history("ann"), before)
        assert not put(store, no_history("ann"), after)
        assert put(store, before, after)
        assert not put(store, before, after)
        found = store.read(before.user)
        assert found is not None
        history = found.history()
        assert history is not None
        assert_is(history, "ann", after.events)
        assert store.totals().events == 101
        shorter = no_history("ann", os.urandom(8)).extended(events[:3])
        assert put(store, after, shorter)
        record = store.read(before.user)
        assert record is not None and record.history() is not None
        assert store.db.execute("SELECT count(*) FROM blocks").fetchone() == (0,)
        (done,) = store.commit([Delete(before.user, used_before=1)])
        assert not isinstance(done, sqlite3.Error) and not done.applied


def test_an_append_writes_no_more_than_its_end(tmp_path: Path) -> None:
    """Two thousand events, one more: some pages, not 48 KB."""
    with store_in(tmp_path) as store:
        history = history_of("ann", 2_000)
        assert put(store, no_history("ann"), history)
        store.checkpoint(truncate=True)
        journal = tmp_path / f"{FILE_NAME}-wal"
        for number in range(32):
            longer = history.extended(random_events(1, number, (number + 2) * 10**12))
            assert put(store, history, longer)
            history = longer
        assert journal.stat().st_size <= (32 * 2 + 3) * (PAGE_BYTES + 24)


def test_a_backup_is_the_log_of_one_moment(tmp_path: Path) -> None:
    with store_in(tmp_path / "log") as store:
        for number in range(50):
            assert put(store, no_history(f"user-{number}"), history_of(f"user-{number}", 40, number))
        (tmp_path / "copy").mkdir()
        store.backup(tmp_path / "copy" / FILE_NAME)
        store.commit([Delete(no_history("user-7").user)])
    with store_in(tmp_path / "copy") as copy:
        assert copy.totals().users == 50
        assert all(record.history() is not None for record in copy.scan(b"", 100))


async def test_the_journal_is_moved_and_emptied_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfalcon.history.file_upkeep.JOURNAL_BYTES", 256 << 10)
    monkeypatch.setattr("mfalcon.history.file_keeper.PERIOD_S", 0.01)
    journal, sizes = tmp_path / f"{FILE_NAME}-wal", [0]
    async with opened("file", tmp_path) as one:
        number = 0
        while number < 200 or (number < 5_000 and times_smaller(sizes) < 2):  # the upkeep may find no core free
            number += 1
            parts = (
                one.log.append(f"user-{other}", Append(random_events(5, other, (number + 2) * 10**11)), None)
                for other in range(10)
            )
            await asyncio.gather(*parts)
            sizes.append(journal.stat().st_size)
        assert times_smaller(sizes) >= 2
        assert len((await one.log.read("user-3", 5)).history) == 5 * number
        await until(lambda: journal.stat().st_size <= 256 << 10)


def test_upkeep_names_who_was_not_asked_for(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        for number in range(5):
            history = history_of(f"user-{number}", 1)
            store.commit([Put(no_history(f"user-{number}"), history, 100 + number)])
        upkeep = FileUpkeep(tmp_path)
        look = upkeep.look(move=False, sync=True, used_before=103, most=2)
        assert [used for _, used in look.idle] == [100, 101]
        assert look.oldest == 100
        assert look.file_bytes >= PAGE_BYTES
        assert upkeep.look(move=True, sync=False, used_before=0, most=0).may_truncate
        upkeep.close()


async def test_a_defect_in_a_change_fails_that_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_for_ann(before: History, after: History) -> int:
        if after.user_id == "ann":
            raise ValueError("planted")
        return first_difference(before, after)

    async with opened("file", tmp_path) as one:
        with monkeypatch.context() as patch:
            patch.setattr("mfalcon.history.file_store.first_difference", fails_for_ann)
            users = ("bob", "ann", "eve")
            told = await asyncio.gather(
                *(one.log.append(user_id, Append(random_events(40)), time.monotonic() + 5) for user_id in users),
                return_exceptions=True,
            )
        assert [getattr(each, "history_len", 0) for each in told] == [40, 0, 40]
        failed = told[1]
        assert isinstance(failed, StorageUnavailable) and not failed.may_be_done
        assert "this server has a defect" in str(failed) and "planted" not in str(failed)
        assert (await one.log.append("ann", Append(random_events(40)), None)).history_len == 40

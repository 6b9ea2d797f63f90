"""`mfalcon log`: what goes out comes in again, to the bit; damage is named; nobody writes beside a server."""

import json
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from mfalcon.cli.log import app
from mfalcon.errors import ConfigError, DataError
from mfalcon.history.directory_lock import DirectoryLock
from mfalcon.history.file_store import FILE_NAME, FileStore
from mfalcon.history.file_tools import add, histories
from mfalcon.history.history import History, no_history
from tests.small import random_events


def run(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of users with histories of every kind: short, long, trimmed, with a strange name."""
    directory = tmp_path / "log"
    directory.mkdir()
    whole = [
        no_history(user_id, os.urandom(8)).extended(random_events(length, length))
        for user_id, length in (("ann", 1), ("bob", 32), ("ünï\u200b", 33), ('q"u\\ote\n', 200))
    ]
    store = FileStore.open(directory, fsync=False)
    assert add(store, [*whole[:-1], whole[-1].trimmed(64)]).added == 4
    store.close()
    return directory


def content(directory: Path) -> dict[str, History]:
    store = FileStore.open_to_read(directory)
    try:
        return {history.user_id: history for history in histories(store)}
    finally:
        store.close()


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = content(one), content(other)
    assert ours.keys() == theirs.keys()
    for user_id, history in ours.items():
        again = theirs[user_id]
        assert (history.generation, history.base, history.version) == (again.generation, again.base, again.version)
        assert history.events.tobytes() == again.events.tobytes()


@pytest.mark.parametrize("target", ["log.jsonl", "parquet"])
def test_what_goes_out_comes_in_again(log: Path, tmp_path: Path, target: str) -> None:
    if target == "parquet":
        pytest.importorskip("polars")
    assert "4 users" in run("export", log, tmp_path / target).stdout
    assert "4 users added, 0 were there" in run("import", tmp_path / "again", tmp_path / target).stdout
    assert_same(log, tmp_path / "again")
    assert "0 users added, 4 were there already" in run("import", tmp_path / "again", tmp_path / target).stdout
    with pytest.raises(ConfigError, match="there is something already"):
        run("export", log, tmp_path / target)


def test_users_of_many_parts_come_in_again(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("polars")
    monkeypatch.setattr("mfalcon.history.exchange.ROWS_A_FILE", 2)
    run("export", log, tmp_path / "parts")
    assert len(list((tmp_path / "parts").iterdir())) > 1
    run("import", tmp_path / "again", tmp_path / "parts")
    assert_same(log, tmp_path / "again")


def test_a_table_of_ones_own_comes_in(tmp_path: Path) -> None:
    pl = pytest.importorskip("polars")
    rows = {"user_id": ["b", "a", "b"], "item_id": [1, 2, 3], "actions": [1, 0, 1], "value": [1.0, 2, 3]}
    pl.DataFrame({**rows, "time_ms": [5, 6, 7], "extra": [0, 0, 0]}).write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"user_id": "c", "events": [[7, 1, 0.5, 9]]}\n')
    run("import", tmp_path / "log", tmp_path / "t.parquet")
    run("import", tmp_path / "log", tmp_path / "t.jsonl")
    found = content(tmp_path / "log")
    assert {user_id: history.events["item_id"].tolist() for user_id, history in found.items()} == {
        "a": [2],
        "b": [1, 3],
        "c": [7],
    }
    assert len({history.generation for history in found.values()}) == 3


def test_another_history_is_left_as_it_is(log: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"user_id": "ann", "events": [[7, 1, 0.5, 9]]}\n')
    before = content(log)["ann"].version
    result = run("import", log, tmp_path / "t.jsonl")
    assert result.exit_code == 1
    assert "1 have another history here: ann" in result.stdout
    assert content(log)["ann"].version == before


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", "line 1: is no object with user_id and events"),
        ("[]", "line 1: is no object"),
        ('{"user_id": "a", "events": [[1, 2]]}', "line 1: is no object"),
        ('{"user_id": "a", "events": []}', "line 1: events: must be one or more"),
        ('{"user_id": "a", "events": [[1, 1, null, 1]]}', "line 1"),
        ('{"user_id": "", "events": [[1, 1, 1, 1]]}', "line 1: user_id: got '', must be 1 to 256 bytes"),
        ('{"user_id": 7, "events": [[1, 1, 1, 1]]}', "line 1: user_id: got 7"),
        ('{"user_id": "a", "events": [[1, 1, 1, 2], [1, 1, 1, 1]]}', "line 1: time_ms: must be from 0 to"),
        ('{"user_id": "a", "events": [[1, 1, 1, -1]]}', "line 1: time_ms"),
        (
            '{"user_id": "a", "events": [[1, 1, 1, 1700000000]]}',
            "got 1700000000, must be milliseconds since 1970; this would",
        ),
        (
            '{"user_id": "a", "events": [[1, 1, 1, 9900000000000]]}',
            "time_ms: got 9900000000000, must be at most a day after now",
        ),
        ('{"user_id": "a", "events": [[1, 1, 1, 1]], "base": 7}', "line 1: base: got 7, must be a multiple of 32"),
        ('{"user_id": "a", "events": [[1, 1, 1, 1]], "version": "00"}', "line 1: version: got 00, must be"),
        ('{"user_id": "a", "events": [[1, 1, 1, 1]], "generation": "zz"}', "must be hex digits"),
        ('{"user_id": "a", "events": [[1, 1, 1, 1]], "generation": "00"}', "generation: got 1 bytes, must be 8"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "t.jsonl").write_text(line + "\n")
    with pytest.raises(DataError) as caught:
        run("import", tmp_path / "log", tmp_path / "t.jsonl")
    assert says in str(caught.value)


def test_damage_is_named(log: Path) -> None:
    assert "4 users, 0 of them damaged" in run("verify", log, "--pages").stdout
    with sqlite3.connect(log / FILE_NAME) as db:
        db.execute("UPDATE users SET tail = x'00' WHERE user_id = 'ann'")
    db.close()
    result = run("verify", log, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"users": 4, "damaged": ["ann"], "pages": []}
    with pytest.raises(DataError, match="the log of user 'ann' is damaged"):
        run("export", log, log.parent / "out.jsonl")


def test_a_backup_is_a_log(log: Path, tmp_path: Path) -> None:
    lock = DirectoryLock(log)  # as a server holds it
    try:
        assert "4 users" in run("backup", log, tmp_path / "copy").stdout
        found = json.loads(run("stats", log, "--json").stdout)
        assert (found["users"], found["events"]) == (4, 1 + 32 + 33 + 200 - 64)
        with pytest.raises(ConfigError, match="is in use by process"):
            run("import", log, tmp_path / "copy" / FILE_NAME)
    finally:
        lock.release()
    assert_same(log, tmp_path / "copy")
    assert os.stat(tmp_path / "copy" / FILE_NAME).st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="holds no event log"):
        run("stats", tmp_path)


def test_values_survive_both_forms(tmp_path: Path) -> None:
    events = random_events(9)
    events["value"] = np.array([0.1, -0.0, 1e-45, 3.4e38, -1e30, 1 / 3, 2, 3, 4], dtype=np.float32)
    events["item_id"] = [-(2**63), 2**63 - 1, 0, 1, 2, 3, 4, 5, 6]
    (tmp_path / "log").mkdir()
    store = FileStore.open(tmp_path / "log", fsync=False)
    add(store, [no_history("ann", b"12345678").extended(events)])
    store.close()
    for target in ("out.jsonl", "out"):
        if target == "out":
            pytest.importorskip("polars")
        run("export", tmp_path / "log", tmp_path / target)
        run("import", tmp_path / f"from-{target}", tmp_path / target)
        assert_same(tmp_path / "log", tmp_path / f"from-{target}")

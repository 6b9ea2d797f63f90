"""`mfalcon train` on a user's own file, in this process: what it asks, what it says and what it refuses."""

import errno
import os
import sys
from itertools import count
from pathlib import Path

import pytest

from mfalcon.cli.main import COMMANDS, main
from mfalcon.models.manifest import read_config

COLUMNS = "action=what,value=dwell"
SMALL = ("--dim", "8", "--max-history", "10", "--window-chunk", "5", "--epochs", "2", "--threads", "1")


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "e.csv"
    rows = [f"u{n % 7},{n % 11},{1790000000 + n},{('view', 'click', 'view', 'buy')[n % 4]},{n % 5}" for n in range(200)]
    path.write_text("user_id,item_id,timestamp,what,dwell\n" + "\n".join(rows) + "\n")
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mfalcon", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_from_a_proposal_to_a_checkpoint(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "t.toml"
    asked = ("train", "--data", events, "--columns", COLUMNS, "--out", out, *SMALL)
    assert run(monkeypatch, *asked) == 1
    told = capsys.readouterr()
    assert "read: 200 events of 7 users on 11 items" in told.err
    assert "error: " in told.err and "--tasks auto" in told.err
    assert not out.exists()
    file.write_text(told.out)
    assert run(monkeypatch, *asked, "--tasks", "propose") == 0
    assert capsys.readouterr().out == told.out
    assert run(monkeypatch, *asked, "--config", file, "--tasks", "auto") == 1
    assert "--tasks: has no effect" in capsys.readouterr().err
    other = tmp_path / "other.toml"
    other.write_text("[training]\nepochs = 1\n")
    assert run(monkeypatch, *asked, "--config", other) == 1
    assert f"put what is proposed above into {other}, " in " ".join(capsys.readouterr().err.split())
    assert run(monkeypatch, *asked, "--config", file) == 0
    told = capsys.readouterr()
    assert "ranks by: 1 x buy + 1 x click" in told.out
    assert "kept: epoch " in told.out and "all epochs are done" in told.out
    assert [task.name for task in read_config(out / "config.json").tasks] == ["buy", "click", "value"]
    assert run(monkeypatch, *asked, "--tasks", "auto") == 1
    assert f"error: {out}: there is a checkpoint already; --overwrite" in capsys.readouterr().err
    assert run(monkeypatch, *asked, "--tasks", "auto", "--overwrite") == 0


def test_a_full_scratch_is_named_and_nothing_is_lost(
    events: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of a run's files finds no room: no part of a checkpoint is there, and finished epochs are kept."""
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    asked = ("train", "--data", events, "--columns", COLUMNS, "--tasks", "auto", "--out", out, *SMALL)
    allocate, files_left = os.posix_fallocate, 0

    def fill(descriptor: int, offset: int, size: int) -> None:
        nonlocal files_left
        if not files_left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files_left -= 1
        allocate(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", fill)
    for number in count(0, 4):
        files_left = number
        if run(monkeypatch, *asked, "--scratch", scratch) == 0:
            break
        told = " ".join(capsys.readouterr().err.split())
        assert f"error: {scratch}: 0 MB of scratch cannot be written: No space left on device; " in told
        assert told.endswith("another --scratch, and run it again: what was finished before is kept")
        assert os.listdir(scratch) == [] and not out.exists()
        kept = sorted(set(os.listdir(tmp_path)) - {"e.csv", "scratch"})
    assert number > 10 and kept == [".out.progress"]
    assert "going on after epoch " in capsys.readouterr().out
    assert (out / "config.json").is_file() and os.listdir(scratch) == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_takes_h(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, name, "-h") == 0
    assert "usage: " in capsys.readouterr().out.lower()

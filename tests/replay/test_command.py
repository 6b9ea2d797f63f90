"""`mfalcon replay --capture` as a user types it: a table for people, and errors that say what is wrong."""

import asyncio
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from mfalcon.cli.replay import replay
from mfalcon.errors import ConfigError, DataError
from mfalcon.models import checkpoint
from mfalcon.types import Append
from tests.capture.capturing import capturing, key_file, options
from tests.small import random_events, rank_request, small_checkpoint

EVENTS = random_events(40)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, another one, a capture of the first with scores and one without."""
    root = tmp_path_factory.mktemp("replay")
    for seed in (0, 1):
        made = small_checkpoint(dtype=torch.float32, seed=seed)
        checkpoint.save(root / f"checkpoint-{seed}", made.model, made.items)
    loaded = checkpoint.load(root / "checkpoint-0")

    async def capture(name: str, *, scores: bool) -> None:
        async with capturing(options(root / name, scores=scores), loaded) as engine:
            for first in (0, 20):
                await engine.append_events("ann", Append(EVENTS[first : first + 20]))
                await engine.rank(rank_request("ann", loaded.items.item_id[:15].tolist()), None)

    for name in ("capture", "without"):
        asyncio.run(capture(name, scores=name == "capture"))
    return root


def run(*arguments: str, columns: int = 200) -> str:
    """What it prints. Raises what it raises."""
    app = typer.Typer()
    app.command()(replay)
    done = CliRunner().invoke(app, [*arguments, "--threads", "1"], env={"COLUMNS": str(columns)})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_table_says_what_moved(directory: Path) -> None:
    named = (str(directory / "checkpoint-0"), "--capture", str(directory / "capture"))
    said = run(*named, "--against", str(directory / "checkpoint-1"), "--worst", "1")
    for words in (
        "2 captured requests",
        "of the same version and kernel 2",
        "captured against checkpoint",
        "checkpoint against the other",
        "captured against checkpoint, by task",
        "Spearman",
        "history 1-31",
        "history 32-127",
        "computing a request",
        "requests that moved most\nuser tag of ann",
    ):
        assert words in said, said


def test_a_narrow_terminal_cuts_no_request_that_moved(directory: Path) -> None:
    named = (str(directory / "checkpoint-0"), "--capture", str(directory / "capture"))
    said = run(*named, "--against", str(directory / "checkpoint-1"), "--worst", "2", columns=40)
    assert "…" not in run(*named, columns=80)
    lines = said.partition("requests that moved most\n")[2].splitlines()
    assert len(lines) == 2 and {f"history_len {length}" in said for length in (20, 40)} == {True}
    for line in lines:
        assert line.startswith("user tag of ann") and "num_candidates 15" in line


def test_without_scores_two_checkpoints_are_compared(directory: Path) -> None:
    named = (str(directory / "checkpoint-0"), "--capture", str(directory / "without"))
    assert "checkpoint against the other" in run(*named, "--against", str(directory / "checkpoint-1"), "--limit", "1")
    with pytest.raises(ConfigError, match="--against: must be given where"):
        run(*named)


def test_what_cannot_be_played_is_said(directory: Path, tmp_path: Path) -> None:
    named, capture = str(directory / "checkpoint-0"), str(directory / "capture")
    with pytest.raises(ConfigError, match="--against, --keys: must not be given without --capture"):
        run(named, "--against", named)
    with pytest.raises(ConfigError, match="no request of model x that can be read"):
        run(named, "--capture", capture, "--model", "x")
    with pytest.raises(DataError, match="there are no capture files"):
        run(named, "--capture", str(tmp_path))
    with pytest.raises(ConfigError, match="--dtype: got 'int8', must be one of"):
        run(named, "--capture", capture, "--dtype", "int8")
    empty = tmp_path / "keys"
    empty.write_bytes(key_file(directory / "capture").read_bytes()[:80])
    with pytest.raises(ConfigError, match="2 of users whose keys are deleted or not here"):
        run(named, "--capture", capture, "--keys", str(empty))

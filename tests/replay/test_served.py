"""Captures of a real server, by either transport and through front-ends, whatever ended it, played by the command."""

import json
import signal
import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from loadtest.faults.server_process import ServerProcess
from mfalcon.capture.files import capture_files
from mfalcon.cli.replay import replay
from mfalcon.models import checkpoint
from mfalcon_client import Client, ClientError
from tests.capture.capturing import read_all
from tests.small import random_events, small_checkpoint

QUICK = ("--threads", "1", "--microbatch", "16", "--max-clock-skew-s", "0", "--backend", "auto")
SMALL = small_checkpoint(dtype=torch.float32)
ITEMS = SMALL.items.item_id[:20]
EVENTS = random_events(40)
TOKEN = "mfk_the-token-of-a-caller-of-these-tests"
NOW_MS = int(EVENTS["time_ms"][-1]) + 1_000


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints, as they are written."""
    root = tmp_path_factory.mktemp("checkpoints")
    for seed in (0, 1):
        made = small_checkpoint(dtype=torch.float32, seed=seed)
        checkpoint.save(root / str(seed), made.model, made.items)
    return root / "0", root / "1"


@pytest.fixture
def command() -> CliRunner:
    return CliRunner()


def played(command: CliRunner, *arguments: str) -> dict[str, object]:
    """What `mfalcon replay --json` prints."""
    app = typer.Typer()
    app.command()(replay)
    done = command.invoke(app, [*arguments, "--threads", "1", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def callers(directory: Path) -> Path:
    """A file of one caller, who may rank and append with `TOKEN`."""
    path = directory / "callers.toml"
    digest = sha256(TOKEN.encode()).hexdigest()
    path.write_text(
        f'[[callers]]\nname = "feed"\nrights = ["rank", "append"]\n[[callers.tokens]]\nsha256 = "{digest}"\n'
    )
    return path


def ask(server: ServerProcess, user: str) -> None:
    """Over both transports, before and after an append."""
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        Client(server.grpc, token=TOKEN, token_in_clear=True) as client,
        httpx.Client(base_url=f"http://{server.http}", timeout=60, headers=headers) as http,
    ):
        for first in (0, 20):
            client.append_events(user, EVENTS[first : first + 20])
            result = client.rank(user, ITEMS, request_time_ms=NOW_MS, context={"surface": 1}, top_k=3)
            body = {"user_id": user, "candidates": ITEMS.tolist(), "request_time_ms": NOW_MS}
            answer = http.post("/v1/rank", json=body | {"context": {"surface": 1}, "top_k": 3})
            assert answer.status_code == 200, answer.text
            by_http = np.array(answer.json()["scores"], dtype=np.float32)
            assert by_http.tobytes() == result.scores.astype(np.float32).tobytes()


@pytest.mark.parametrize("frontends", ["1", pytest.param("0", marks=pytest.mark.thorough)])
def test_what_comes_by_either_transport_is_captured_and_equal(
    directories: tuple[Path, Path], tmp_path: Path, command: CliRunner, frontends: str
) -> None:
    capture = ("--capture-dir", str(tmp_path / "c"), "--capture-sample", "1")
    flags = (*capture, "--frontends", frontends, "--tokens-file", str(callers(tmp_path)))
    with ServerProcess(directories[0], tmp_path, (*QUICK, *flags)) as server:
        for user in ("ann", "bob"):
            ask(server, user)
        server.send(signal.SIGTERM)
        assert server.wait() == 0
    told = played(command, str(directories[0]), "--capture", str(tmp_path / "c"), "--against", str(directories[1]))
    same, moved = told["same"], told["moved"]
    assert isinstance(same, dict) and isinstance(moved, dict)
    assert told["holds"] and same["num"] == 8 and same["worst_error"] <= 1e-5
    if same["promised_to_the_bit"]:
        assert same["equal_to_the_bit"] == 8
    assert moved["num"] == 8 and all(worst["request_id"] for worst in moved["worst"])
    captured, _ = read_all(tmp_path / "c")
    assert {one.raw.caller for one in captured} == {"feed"}
    assert len({one.raw.request_id for one in captured}) == 8 and len({one.raw.user for one in captured}) == 2
    assert {len(one.history) for one in captured} == {20, 40}


def test_a_server_that_is_killed_under_load_leaves_what_can_be_played(
    directories: tuple[Path, Path], tmp_path: Path, command: CliRunner
) -> None:
    flags = ("--capture-dir", str(tmp_path / "c"), "--capture-sample", "1")
    with ServerProcess(directories[0], tmp_path, (*QUICK, *flags)) as server:
        ended = threading.Event()

        def load(user: str) -> None:
            with Client(server.grpc) as client, suppress(ClientError):
                client.append_events(user, EVENTS)
                while not ended.is_set():
                    client.rank(user, ITEMS, request_time_ms=NOW_MS)

        threads = [threading.Thread(target=load, args=(f"user {i}",)) for i in range(3)]
        for thread in threads:
            thread.start()
        give_up = time.monotonic() + 300
        while sum(path.stat().st_size for path in capture_files(tmp_path / "c")) < 5_000:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        server.send(signal.SIGKILL)
        server.wait()
        ended.set()
        for thread in threads:
            thread.join()
    told = played(command, str(directories[0]), "--capture", str(tmp_path / "c"))
    same, read = told["same"], told["capture"]
    assert isinstance(same, dict) and isinstance(read, dict)
    assert told["holds"] and same["num"] == read["read"] > 3
    assert read["damaged_frames"] == read["gaps"] == read["forged"] == read["no_history"] == 0

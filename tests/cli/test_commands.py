"""The commands as a user types them, on small data: train, evaluate, verify, rank, and how errors end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfalcon.cli.main import main
from mfalcon.cli.process import serving

TRAIN = ("--data", "synthetic", "--epochs", "1", "--dim", "16", "--max-history", "40", "--window-chunk", "20")


def mfalcon(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mfalcon.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables, timeout=120)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "checkpoint"
    done = mfalcon("train", *TRAIN, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "epoch  1: validation AUC" in done.stdout
    return out


def test_evaluate_prints_one_json_object(trained: Path) -> None:
    done = mfalcon("evaluate", str(trained), "--data", "synthetic", "--json")
    reports = json.loads(done.stdout)["reports"]
    assert [report["visibility"] for report in reports] == ["strict", "order"]
    assert all(0 < report["auc"] < 1 for report in reports)


def test_verify_holds_and_says_so(trained: Path) -> None:
    done = mfalcon("verify", str(trained), "--dtype", "float32", "--json")
    assert done.returncode == 0
    content = json.loads(done.stdout)
    assert content["holds"]
    assert {law["law"] for law in content["laws"]} == {1, 2, 3, 4, 5, 6}


def test_rank_asks_a_running_server(trained: Path) -> None:
    with serving(trained) as served:
        target = ("--target", served.grpc)
        table = mfalcon("rank", "--user", "ann", "--checkpoint", str(trained), "--top", "3", *target)
        as_json = mfalcon("rank", "--user", "ann", "--candidates", "1,2,3", "--json", *target)
        refused = mfalcon("rank", "--user", "ann", "--candidates", "1", "--context", "mood=1", *target)
    assert table.returncode == 0, table.stderr
    assert "tokens reused" in table.stdout
    assert len(json.loads(as_json.stdout)["top"]) == 3
    assert refused.returncode == 1
    assert "INVALID_ARGUMENT" in refused.stderr
    assert "mood" in refused.stderr
    assert served.process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "--checkpoint", "nowhere"), "manifest.json: no such file"),
        (("serve", "--grpc-port", "99999", "--checkpoint", "x"), "grpc_port"),
        (("serve",), "checkpoint"),
        (("rank", "--user", "ann"), "--checkpoint"),
        (("rank", "--user", "ann", "--candidates", "one"), "one"),
        (("rank", "--user", "ann", "--candidates", "1", "--target", "127.0.0.1:1"), "UNAVAILABLE"),
        (("verify", "nowhere"), "manifest.json: no such file"),
        (("train", "--data", "nowhere.csv"), "nowhere.csv"),
        (("train", "--data", "synthetic", "--model", "bert"), "bert"),
        (("train", "--data", "synthetic", "--window-chunk", "300"), "window_chunk"),
        (("train", "--data", "nowhere.csv", "--columns", "usr=x"), "--columns"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mfalcon", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert told in error


def test_a_mistyped_variable_is_an_error(trained: Path) -> None:
    done = mfalcon("serve", "--checkpoint", str(trained), MFALCON_GRPC_PROT="1")
    assert done.returncode == 1
    assert "grpc_port" in done.stderr

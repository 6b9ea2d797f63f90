"""The commands as a user types them, on small data: train, evaluate, verify, rank, and how errors end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer

from mfalcon.cli.datasets import open_dataset
from mfalcon.cli.main import main
from mfalcon.cli.process import serving
from mfalcon.cli.training import train_checkpoint
from mfalcon.models import checkpoint
from mfalcon.models.config import Task
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.run import PROGRESS
from tests.small import small_checkpoint

TRAIN = ("--data", "synthetic", "--epochs", "1", "--dim", "16", "--max-history", "40", "--window-chunk", "20")


def mfalcon(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mfalcon.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables, timeout=120)


@dataclass(frozen=True, slots=True)
class Ended:
    """As a process ends."""

    returncode: object
    stdout: str
    stderr: str


Inside = Callable[..., Ended]


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Inside]:
    """Calls a command in this process, which has imported torch already."""

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mfalcon", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Ended(end.value.code or 0, said.out, said.err)

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "checkpoint"
    done = mfalcon("train", *TRAIN, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "epoch  1: validation AUC" in done.stdout
    return out


def test_evaluate_prints_one_json_object(trained: Path, inside: Inside) -> None:
    done = inside("evaluate", str(trained), "--data", "synthetic", "--no-trees", "--json")
    found = json.loads(done.stdout)
    reports = found["reports"]
    assert [(report["task"], report["scorer"], report["visibility"]) for report in reports] == [
        ("like", "model", "strict"),
        ("rating", "model", "strict"),
        ("like", "model", "order"),
        ("rating", "model", "order"),
        ("like", "item mean", None),
        ("like", "popularity", None),
        ("like", "logistic", None),
        ("rating", "item mean", None),
    ]
    assert {standing["slice"] for standing in found["slices"]} >= {"all", "head items", "tail items"}
    assert all(lead["low"] <= lead["value"] <= lead["high"] for lead in found["leads"] if lead["slice"] == "all")
    assert all(0 < report["auc"] < 1 for report in reports if report["task"] == "like")
    assert all(0 < report["mae"] <= report["rmse"] for report in reports if report["task"] == "rating")


def test_evaluate_prints_every_task_beside_the_baselines(
    trained: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = inside("evaluate", str(trained), "--no-trees")
    assert "…" not in done.stdout
    for words in (("like", "model", "strict"), ("rating", "model", "order"), ("like", "logistic")):
        assert any(all(word in line for word in words) for line in done.stdout.splitlines())


def test_evaluate_tells_what_a_diverse_top_costs(trained: Path, inside: Inside) -> None:
    done = inside("evaluate", str(trained), "--data", "synthetic", "--rerank", "mmr", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    for pool in ("rated", "catalogue"):
        strengths = [row["strength"] for row in rows if row["pool"] == pool]
        assert strengths == sorted(set(strengths)) and len(strengths) > 10
        assert sum(row["chosen"] for row in rows if row["pool"] == pool) == 1
    assert all(row["gain"] == 0 for row in rows if row["strength"] == 0)
    done = inside("evaluate", str(trained), "--data", "synthetic", "--rerank", "mmr", "--strength", "0.1", "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["rows"] if row["pool"] == "catalogue"]
    assert rows[-1]["tail_weight"] == 1 and rows[-1]["tail"] > rows[0]["tail"]  # training counted the items


def test_verify_holds_and_says_so(trained: Path, inside: Inside) -> None:
    done = inside("verify", str(trained), "--dtype", "float32", "--json")
    assert done.returncode == 0
    content = json.loads(done.stdout)
    assert content["holds"]
    assert {law["law"] for law in content["laws"]} == {1, 2, 3, 4, 5, 6, 7}


def test_rank_asks_a_running_server(trained: Path, inside: Inside) -> None:
    with serving(trained) as served:
        target = ("--target", served.grpc)
        table = mfalcon("rank", "--user", "ann", "--checkpoint", str(trained), "--top", "3", *target)
        as_json = inside("rank", "--user", "ann", "--candidates", "1,2,3", "--json", *target)
        named = inside("rank", "--user", "ann", "--candidates", "sku,1,2", "--exclude-unknown", "--json", *target)
        refused = inside("rank", "--user", "ann", "--candidates", "1", "--context", "mood=1", *target)
        featured = inside("rank", "--user", "ann", "--candidates", "1,2", "--feature", "price=1,2.5", *target)
        no_number = inside("rank", "--user", "ann", "--candidates", "1", "--feature", "price=cheap", *target)
    assert "features.names[0]: got 'price', must be one of the model's dense features (none" in featured.stderr
    assert "--feature: got ['price=cheap'], each must be name=number,number" in no_number.stderr
    assert table.returncode == 0, table.stderr
    assert "tokens reused" in table.stdout
    assert len(json.loads(as_json.stdout)["top"]) == 3
    assert refused.returncode == 1
    assert "INVALID_ARGUMENT" in refused.stderr
    assert "mood" in refused.stderr
    assert served.process.returncode == 0
    assert named.returncode == 0, named.stderr
    assert {row["item_id"] for row in json.loads(named.stdout)["top"]} == {1, 2}


def test_a_second_load_finds_everything_there(trained: Path, inside: Inside) -> None:
    """Of a log that was cut, too: a history's length counts what is gone."""
    with serving(trained, "--log-max-events", "40", "--log-slack-events", "0") as served:
        loading = ("load", "--data", "synthetic", "--target", served.grpc)
        first, second = mfalcon(*loading), inside(*loading)
    total = f"{len(open_dataset('synthetic', '', None, '', None).events):,}"
    assert first.stdout == f"{total} events appended\n"
    assert second.stdout == f"0 events appended, {total} were there\n"


def test_chaos_refuses_a_server_of_another_checkpoint(trained: Path, tmp_path: Path, inside: Inside) -> None:
    other = tmp_path / "other"
    another = small_checkpoint()
    checkpoint.save(other, another.model, another.items)
    with serving(trained) as served:
        refused = inside("chaos", str(other), "--target", served.grpc, "--minutes", "0.01")
    versions = [checkpoint.load(path).fingerprint[:12] for path in (trained, other)]
    assert refused.returncode == 1
    assert f"{served.grpc} serves version {versions[0]}, {other} is {versions[1]}" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("serve", "--grpc-port", "99999", "--checkpoint", "x"), "grpc_port"),
        (("serve",), "checkpoint"),
        (("serve", "--grpc-prot", "1"), "--grpc-prot: there is no such setting; did you mean grpc_port?"),
        (("serve", "nowhere"), "unrecognized arguments: nowhere"),
        (("serve", "--checkpoint"), "--checkpoint: expected one argument"),
        (("serve", "--checkpoint", "a", "--checkpoint", "b"), "--checkpoint: it is given 2 times, must be once"),
        (("serve", "--checkpoint=a", "--grpc-port", "0", "--checkpoint=a"), "--checkpoint: it is given 2 times"),
        (("serve", "--config", "a", "--config", "b"), "--config: it is given 2 times, must be once"),
        (("serve", "--models", "[{"), "models"),
        (("rank", "--user", "ann"), "--checkpoint"),
        (("rank", "--user", "ann", "--candidates", "one,"), "'one,', must be item ids separated by commas"),
        (("rank", "--user", "ann", "--candidates", "1", "--target", "127.0.0.1:1"), "UNAVAILABLE"),
        (("verify", "nowhere"), "manifest.json: no such file"),
        (("train", "--data", "nowhere.csv"), "nowhere.csv"),
        (("train", "--data", "synthetic", "--embedding", "robe-mix"), "robe-mix needs memory_mb"),
        (("train", "--data", "synthetic", "--no-list-items"), "--no-list-items: a table has a row for each item"),
        (("train", "--data", "synthetic", "--model", "bert"), "bert"),
        (("train", "--data", "synthetic", "--window-chunk", "300"), "window_chunk"),
        (
            ("train", "--data", "nowhere.csv", "--columns", "usr=x"),
            "--columns: usr: unknown name (user, perhaps); known names are",
        ),
        (("train", "--data", "nowhere.csv", "--columns", "user"), "--columns: got 'user', must be name=column"),
        (("train", "--data", "nowhere.csv", "--columns", "user=a,user=b"), "user is given twice"),
        (("train", "--data", "nowhere.csv", "--item-columns", "item=movie"), "--item-columns: needs --items"),
        (("train", "--data", "nowhere.csv", "--like-at-least", "nan"), "--like-at-least"),
        (("train", "--data", "synthetic", "--columns", "foo=bar"), "--columns: only for a file"),
        (("train", "--data", "ml-100k", "--like-at-least", "3"), "--like-at-least: only for a file"),
        (("train", "--data", "synthetic", "--items", "i.csv"), "--items: only for a file"),
        (("train", "--data", "synthetic", "--item-columns", "item=x"), "--item-columns: only for a file"),
        (("train", "--data", "synthetic", "--learning-rate", "-1"), "--learning-rate: Input should be greater than 0"),
        (("train", "--data", "synthetic", "--learning-rate", "nan"), "--learning-rate"),
        (("train", "--data", "synthetic", "--seed", "4294967296"), "--seed"),
        (("train", "--data", "synthetic", "--dim", "15", "--heads", "2"), "dim 15 is not a multiple"),
        (("train", "--data", "synthetic", "--dropout", "1"), "dropout"),
        (("train", "--data", "synthetic", "--config", "nowhere.toml"), "nowhere.toml: cannot be read"),
        (("verify", "x", "--device", "banana"), "--device: got 'banana', must be cpu, cuda or cuda:N"),
        (("verify", "x", "--device", "meta"), "--device: got 'meta'"),
        (("verify", "x", "--device", "cuda:99"), "--device: got 'cuda:99', but torch finds"),
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


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "-1"),
        ("--threads", "-1"),
        ("--heads", "0"),
        ("--dim", "0"),
        ("--layers", "0"),
        ("--max-history", "0"),
        ("--window-chunk", "0"),
        ("--seed", "-1"),
    ],
)
def test_a_number_out_of_range_is_a_usage_error(
    option: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mfalcon", "train", "--data", "synthetic", option, value])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("--threads", ("bench", "score", "--threads", "1", "--threads", "2")),
    ],
)
def test_a_flag_that_is_given_twice_is_a_usage_error(
    flag: str, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mfalcon", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert flag in told
    assert "given 2 times" in told


def test_a_repeatable_flag_may_be_repeated(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    once = ("--user", "ann", "--candidates", "1", "--target", "127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["mfalcon", "rank", *once, "--context", "hour=1", "--context", "surface=2"])
    with pytest.raises(SystemExit):
        main()
    assert "UNAVAILABLE" in capsys.readouterr().err


FILE = """
[training]
epochs = 7
batch_size = 64
patience = 2

[[tasks]]
name = "loved"
kind = "binary"
value_at_least = 5

[[tasks]]
name = "rating"
kind = "regression"
center = 3.5
"""


def test_a_training_file_sets_what_no_flag_does(tmp_path: Path) -> None:
    """Flags win: one epoch, not seven. Tasks without a blend: every binary one alike."""
    path = tmp_path / "train.toml"
    path.write_text(FILE)
    out = tmp_path / "checkpoint"
    done = mfalcon("train", *TRAIN, "--config", str(path), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "epoch  1: validation AUC" in done.stdout and "epoch  2" not in done.stdout
    config = checkpoint.load(out).model.config
    assert [task.name for task in config.tasks] == ["loved", "rating"]
    assert config.blend == {"loved": 1.0}


def test_a_training_file_of_unknown_tasks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.toml"
    path.write_text("[blend]\nclick = 1.0\n")
    monkeypatch.setattr(sys, "argv", ["mfalcon", "train", "--data", "synthetic", "--config", str(path)])
    with pytest.raises(SystemExit):
        main()
    assert "train.toml: blend.click: no such task; the tasks are like, rating" in capsys.readouterr().err


def test_tasks_and_columns_of_a_users_own_file(tmp_path: Path) -> None:
    events, items = tmp_path / "e.csv", tmp_path / "i.csv"
    events.write_text("user_id,item_id,timestamp,act\na,1,1,view\na,2,2,cart\nb,1,3,buy\n")
    items.write_text("movie,year,genre,studio\n1,1999,war,x\n2,2000,drama,y\n")
    engaged = Task(name="engaged", kind="binary", any_action=("cart", "buy"))
    dataset = open_dataset(str(events), "action=act", items, "item=movie,side=year+genre", None, [engaged])
    assert (dataset.tasks, dataset.blend) == ((engaged,), {"engaged": 1.0})
    assert [feature.name for feature in dataset.side_features] == ["year", "genre"]


@pytest.mark.parametrize(("finished", "told"), [(True, "finished epochs are kept"), (False, "nothing is kept")])
def test_an_interruption_says_what_is_kept(
    tmp_path: Path,
    finished: bool,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(_data: object, _model: object, _config: object, directory: Path, **_rest: object) -> None:
        if finished:
            directory.mkdir()
            (directory / PROGRESS).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("mfalcon.cli.training.fit", interrupted)
    dataset = open_dataset("synthetic", "", None, "", None)
    with pytest.raises(typer.Exit) as end:
        train_checkpoint(dataset, model_config(dataset, "dfgr"), TrainConfig(), tmp_path / "out", threads=1)
    assert end.value.exit_code == 130
    assert told in capsys.readouterr().out


def test_a_server_that_cannot_load_ends_with_the_cause_in_its_last_line() -> None:
    done = mfalcon("serve", "--checkpoint", "nowhere", "--grpc-port", "0", "--http-port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    *log, error = done.stderr.splitlines()
    assert all(" INFO server.app: " in line for line in log)
    assert error == "error: nowhere/manifest.json: no such file"


def test_a_mistyped_variable_is_an_error(trained: Path) -> None:
    done = mfalcon("serve", "--checkpoint", str(trained), MFALCON_GRPC_PROT="1")
    assert done.returncode == 1
    assert "grpc_port" in done.stderr

"""A training file: read as written, or refused with the file and the key."""

from pathlib import Path

import pytest

from mfalcon.errors import ConfigError
from mfalcon.models.config import Task
from mfalcon.models.config_layers import ReachConfig
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.settings import ReachSettings, TrainFile, equal_blend, read_train_file
from tests.small import small_config


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_every_table(tmp_path: Path) -> None:
    content = """
        [training]
        batch_size = 32
        weight_decay = 0
        [blend]
        click = 1
        buy = 2.5
        [[tasks]]
        name = "click"
        kind = "binary"
        any_action = ["click", "buy"]
        [[tasks]]
        name = "buy"
        kind = "binary"
        any_action = ["buy"]
        loss_weight = 3.0
        [[reach]]
        layer = 2
        tokens = 5
        first = 1
    """
    file = read_train_file(write(tmp_path / "t.toml", content))
    assert file.training == TrainConfig(batch_size=32, weight_decay=0)
    assert file.blend == {"click": 1, "buy": 2.5}
    assert [task.any_action for task in file.tasks] == [("click", "buy"), ("buy",)]
    assert file.with_reach(small_config()).reach == (None, ReachConfig(tokens=5, first=1))


@pytest.mark.parametrize("layers", [(3,), (1, 1)])
def test_layers_that_the_model_has_not_have_no_reach(layers: tuple[int, ...]) -> None:
    file = TrainFile(reach=tuple(ReachSettings(layer=layer, tokens=5) for layer in layers))
    with pytest.raises(ConfigError, match=r"reach: got layers \[.*must be different ones of the 2 of the model"):
        file.with_reach(small_config())


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert read_train_file(write(tmp_path / "t.toml", "")) == TrainFile()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "[training]\nbatchsize = 2",
            r"t\.toml: line 2: training\.batchsize: unknown name \(batch_size, perhaps\); known names are epochs",
        ),
        (
            "[training]\nbatch_size = 0",
            r"t\.toml: line 2: training\.batch_size: Input should be greater than 0 \(got 0\)",
        ),
        (
            "[train]\nepochs = 1",
            r"t\.toml: line 1: train: unknown name \(training, perhaps\); known names are training, blend, tasks",
        ),
        ("[blend]\nclick = nan", r"t\.toml: line 2: blend\.click: "),
        ("[blend]", r"t\.toml: line 1: blend: "),
        (
            "[[tasks]]\nname = 'x'\nkind = 'binary'",
            r"t\.toml: line 1: tasks\.0: task x: a binary task needs exactly one",
        ),
        ("[[tasks]]\nnam = 'x'", r"t\.toml: line 1: tasks\.0\.name: Field required"),
        ("epochs", r"t\.toml: cannot be read as TOML: .*, line 1: 'epochs'"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_train_file(write(tmp_path / "t.toml", content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        read_train_file(tmp_path / "absent.toml")


def test_regression_alone_ranks_by_regression() -> None:
    value = Task(name="value", kind="regression")
    like = Task(name="like", kind="binary", value_at_least=1)
    assert equal_blend([like, value]) == {"like": 1.0}
    assert equal_blend([value]) == {"value": 1.0}

"""What a training says before it starts, and the file of tasks that it proposes."""

from pathlib import Path

import numpy as np
import pytest

from mfalcon.errors import DataError
from mfalcon.train.dataset import Dataset, Reading
from mfalcon.train.description import learn_lines, num_duplicates, read_lines
from mfalcon.train.proposal import proposal
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.settings import read_train_file
from mfalcon.train.splits import split
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping

COLUMNS = ColumnMapping(action="what", value="dwell")
HEAD = "user_id,item_id,timestamp,what,dwell\n"
ROWS = [
    "ann,1,1790000300,view,2.5",
    "ann,2,1790000100,view,0",  # late: behind a later one
    "ann,2,1790000100,view,0",  # late, and a duplicate
    "ann,2,1790000100,view,1",
    'bob,1,1790000200,"buy ""it"", now\t",7',
    "bob,1,1790086400,view,1",
    "bob,3,4102444800,klick é,1",
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    path = tmp_path / "e.csv"
    path.write_text(HEAD + "\n".join(ROWS) + "\n", encoding="utf-8")
    return read_table(path, columns=COLUMNS)


def test_what_was_read(dataset: Dataset) -> None:
    lines = "\n".join(read_lines(dataset))
    assert "7 events of 2 users on 3 items" in lines
    assert "2026-09-21 14:15 to 2100-01-01 00:00" in lines and "read as s" in lines
    assert "3 at least, 3.5 in the middle, 4 at most" in lines
    assert "view 5 (71.4%), " in lines
    assert "value: 0 to 7, 1 in the middle" in lines
    assert "duplicates: 1 rows" in lines
    assert dataset.reading == Reading("s", 3, has_value=True)
    assert "late rows: 3 stand" in lines
    assert "warning: 1 events are later than now" in lines


def test_what_will_be_learned(dataset: Dataset) -> None:
    config = model_config(dataset, "dfgr", dim=8, max_history=10, window_chunk=5)
    lines = list(learn_lines(dataset, config, TrainConfig(), split(dataset, "A"), 1234))
    assert lines[0].startswith("split A: 5 training (2026-09-21 14:15 to ")
    assert any(line.startswith("  klick: 1 if the action is klick é; is so for 0.00% of training") for line in lines)
    assert any(line.startswith("  value: the value; its mean is 2.1 in training") for line in lines)
    assert any(line.startswith("ranks by: 1 x buy_it_now + 1 x klick") for line in lines)
    assert any("dfgr, 2 layers of width 8, 1,234 parameters; it sees the last 10 events" in line for line in lines)


def test_layers_that_see_a_part_are_named(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    far, near = "tokens = 4\ntargets = 8\nfirst = 2\n", "tokens = 3\n"
    path.write_text("".join(f"[[reach]]\nlayer = {n}\n{of}" for n, of in ((2, far), (3, near), (4, far))))
    config = model_config(dataset, "dfgr", dim=8, num_layers=5, max_history=10, window_chunk=5)
    config = read_train_file(path).with_reach(config)
    (line,) = (
        line
        for line in learn_lines(dataset, config, TrainConfig(), split(dataset, "A"), 1)
        if line.startswith("model: ")
    )
    assert line.endswith(
        "it sees the last 10 events; layers 2, 4: 4 tokens back, for a candidate 8, and the first 2; "
        "layer 3: 3 tokens back, for a candidate 3"
    )


def test_the_proposal_can_be_pasted_and_is_what_auto_learns(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text(proposal(dataset), encoding="utf-8")
    file = read_train_file(path)
    assert (file.tasks, file.blend) == (dataset.tasks, dataset.blend)
    assert [task.name for task in file.tasks] == ["buy_it_now", "klick", "value"]
    assert "14.29% of events" in path.read_text(encoding="utf-8")


def test_a_threshold_proposes_its_value(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text(HEAD + "\n".join(ROWS) + "\n", encoding="utf-8")
    dataset = read_table(path, columns=COLUMNS, like_at_least=2.5)
    assert [(task.name, task.value_at_least) for task in dataset.tasks] == [("like", 2.5), ("value", None)]
    (tmp_path / "t.toml").write_text(proposal(dataset), encoding="utf-8")
    assert read_train_file(tmp_path / "t.toml").tasks == dataset.tasks


def test_no_duplicates_where_every_row_differs_in_something(dataset: Dataset) -> None:
    keep = np.array([index != 1 for index in range(7)])
    other = Dataset(**{name: getattr(dataset, name) for name in dataset.__slots__} | {
        "events": dataset.events[keep], "user": dataset.user[keep]
    })  # fmt: skip
    assert num_duplicates(other) == 0


@pytest.mark.parametrize("unit", ["ms", "us"])
def test_seconds_that_are_taken_for_less_are_refused(tmp_path: Path, unit: str) -> None:
    rather = {"ms": "time_unit=s", "us": "time_unit=ms"}[unit]
    stamp = "1790000000" + "000" * (unit == "us")
    path = tmp_path / "e.csv"
    path.write_text(f"user_id,item_id,timestamp,dwell\na,1,{stamp},1\na,2,{stamp},2\n")
    columns = ColumnMapping.model_validate({"value": "dwell", "time_unit": unit})
    with pytest.raises(DataError, match=rf"e\.csv: line 2, column 'timestamp': got '1790.*January 1970 .{rather}"):
        read_table(path, columns=columns)

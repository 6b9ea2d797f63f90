"""What is said of a split that is the file's own, and what of it is refused."""

from pathlib import Path

import pytest

from mfalcon.errors import DataError
from mfalcon.train.dataset import Dataset
from mfalcon.train.leaks import leak_lines
from mfalcon.train.splits import TEST, TRAIN, UNUSED, VALIDATION, split, split_name
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping


def read(path: Path, *rows: str) -> Dataset:
    """Rows of user, item, hour, action and part."""
    file = path / "events.csv"
    cells = [row.split() for row in rows]
    lines = [f"{u},{i},{1_790_000_000 + 3_600 * int(hour)},{what},{part}" for u, i, hour, what, part in cells]
    file.write_text("\n".join(["user_id,item_id,timestamp,what,part", *lines]) + "\n")
    return read_table(file, columns=ColumnMapping(action="what", split="part"))


GOOD = ("a 1 1 view train", "a 2 2 click Train", "b 1 3 view validation", "b 2 4 click unused", "a 3 5 click TEST")


def test_a_column_says_what_each_event_is_for(tmp_path: Path) -> None:
    dataset = read(tmp_path, *GOOD)
    assert split(dataset, "B").tolist() == [TRAIN, TRAIN, VALIDATION, UNUSED, TEST]
    assert split_name(dataset, "A") == "own"
    assert list(leak_lines(dataset)) == []


def test_what_leaks_is_said(tmp_path: Path) -> None:
    dataset = read(tmp_path, *GOOD, "a 9 1 view test", "b 7 0 view test", "b 1 6 view train", "b 1 6 view test")
    told = list(leak_lines(dataset))
    assert told == [
        "warning: 1 of 1 validation events are before a training event of the same user, which has seen their future",
        "33.3% of the training events are later than the first validation event: others' future is learned",
        "warning: 2 of 4 test events are before a training event of the same user, which has seen their future",
        "warning: 1 different test events are training events too, by user, item, time and action",
        "100.0% of the training events are later than the first test event: others' future is learned",
    ]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("holdout", r"line 4, column 'part': got 'holdout', must be one of train, validation, test, unused"),
        ("train", r"column 'part' has no 'validation': .* by validation the best epoch is kept"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path: Path, part: str, says: str) -> None:
    rows = [row.replace("validation", part) for row in GOOD]
    with pytest.raises(DataError, match=says):
        read(tmp_path, *rows)

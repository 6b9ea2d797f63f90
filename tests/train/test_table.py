"""A user's own tables: read as written, or refused with the file, the column and the row."""

import gzip
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mfalcon.errors import DataError
from mfalcon.item_ids import item_id
from mfalcon.models.config import Task
from mfalcon.models.config_features import SideFeature
from mfalcon.train.dataset import Dataset
from mfalcon.train.movielens import INTER
from mfalcon.train.recipes import model_config
from mfalcon.train.table import read_table
from mfalcon.train.table_events import ColumnMapping
from mfalcon.train.table_items import ItemColumns

RATED = ColumnMapping(value="value")
ACTED = ColumnMapping(action="action")

VALUES = """\
user_id,item_id,timestamp,value
bob,30,1000,5
ann,10,2000,1
ann,20,1000,4
ann,20,1000,2
"""

ACTIONS = """\
user_id,item_id,timestamp,action
ann,10,1000,view
ann,10,1000,cart
bob,10,1100,view
bob,10,1200,view
bob,20,1300,purchase
"""


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def side(dataset: Dataset, name: str) -> SideFeature:
    return next(feature for feature in dataset.side_features if feature.name == name)


def test_values(tmp_path: Path) -> None:
    dataset = read_table(write(tmp_path / "my events.csv", VALUES), columns=RATED)
    assert dataset.name == "my events"
    assert dataset.user_ids == ("ann", "bob")
    assert dataset.user.tolist() == [0, 0, 1, 0]
    assert dataset.events["item_id"].tolist() == [20, 20, 30, 10]
    assert dataset.events["value"].tolist() == [4, 2, 5, 1]
    assert dataset.events["time_ms"].tolist() == [1_000_000] * 3 + [2_000_000]
    assert dataset.actions == ("event",)
    assert dataset.items.item_id.tolist() == [10, 20, 30]
    assert dataset.context_features == ()
    like, value = dataset.tasks
    assert (like.name, like.value_at_least) == ("like", 3.0)
    assert (value.kind, value.center) == ("regression", 3.0)
    assert value.loss_weight == pytest.approx(0.1 / 2.5)
    assert dataset.blend == {"like": 1.0}


def test_actions(tmp_path: Path) -> None:
    dataset = read_table(write(tmp_path / "e.csv", ACTIONS), columns=ACTED)
    assert dataset.actions == ("cart", "purchase", "view")
    assert dataset.events["actions"].tolist() == [4, 1, 4, 4, 2]
    assert [(task.name, task.any_action) for task in dataset.tasks] == [
        ("cart", ("cart",)),
        ("purchase", ("purchase",)),
    ]
    assert dataset.blend == {"cart": 1.0, "purchase": 1.0}


def test_same_as_the_movielens_reader(ml100k: Dataset, ml100k_files: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ratings.tsv"
    copy.write_bytes((ml100k_files / INTER).read_bytes())
    columns = ColumnMapping(
        user="user_id:token", item="item_id:token", time="timestamp:float", value="rating:float", time_unit="s"
    )
    dataset = read_table(copy, columns=columns)
    assert dataset.user_ids == ml100k.user_ids
    assert np.array_equal(dataset.user, ml100k.user)
    for field in ("item_id", "value", "time_ms"):
        assert np.array_equal(dataset.events[field], ml100k.events[field])
    assert dataset.tasks[0] == ml100k.tasks[0]
    assert [feature.name for feature in dataset.context_features] == ["hour"]


def test_same_from_every_format(tmp_path: Path) -> None:
    expected = read_table(write(tmp_path / "e.csv", VALUES), columns=RATED)
    write(tmp_path / "e.tsv", VALUES.replace(",", "\t"))
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(VALUES.encode()))
    pl.read_csv(tmp_path / "e.csv").write_parquet(tmp_path / "e.parquet")
    for name in ("e.tsv", "e.csv.gz", "e.parquet"):
        dataset = read_table(tmp_path / name, columns=RATED)
        assert dataset.name == "e"
        assert dataset.user_ids == expected.user_ids
        assert np.array_equal(dataset.user, expected.user)
        assert np.array_equal(dataset.events, expected.events)


@pytest.mark.parametrize(
    ("user_ids", "expected"),
    [
        (("10", "9", "-2"), ("-2", "9", "10")),
        (("10", "9", "007"), ("007", "10", "9")),
        (("é", "b", "B"), ("B", "b", "é")),
    ],
)
def test_user_ids_are_any_text(tmp_path: Path, user_ids: tuple[str, ...], expected: tuple[str, ...]) -> None:
    lines = [f"{user_id},1,{10 + index},{index}" for index, user_id in enumerate(user_ids)]
    path = write(tmp_path / "e.csv", "\n".join(["user_id,item_id,timestamp,value", *lines]))
    dataset = read_table(path, columns=RATED)
    assert dataset.user_ids == expected
    assert [dataset.user_ids[index] for index in dataset.user] == list(user_ids)


MOMENT = 1_794_339_000_123
"""2026-11-10T19:30:00.123Z."""


@pytest.mark.parametrize(
    ("cell", "unit", "expected"),
    [
        ("1794339000", "auto", MOMENT - 123),
        ("1794339000.123", "auto", MOMENT),
        ("1794339000123", "auto", MOMENT),
        ("1794339000123999", "auto", MOMENT),
        ("2026-11-10T19:30:00.123Z", "auto", MOMENT),
        ("2026-11-10 19:30:00.123", "auto", MOMENT),
        ("2026-11-10T21:30:00.123999+02:00", "auto", MOMENT),
        ("2026-11-10", "iso8601", MOMENT - 123 - (19 * 3600 + 1800) * 1000),
        ("20261110", "s", 20_261_110_000),
        ("20261110", "iso8601", MOMENT - 123 - (19 * 3600 + 1800) * 1000),
        ("63", "ms", 63),
        ("63999", "us", 63),
        ("1", "ms", 1),
    ],
)
def test_times(tmp_path: Path, cell: str, unit: str, expected: int) -> None:
    path = write(tmp_path / "e.csv", f"user_id,item_id,timestamp,value\na,1,{cell},1\na,2,{cell},2\n")
    columns = ColumnMapping.model_validate({"value": "value", "time_unit": unit})
    assert read_table(path, columns=columns).events["time_ms"].tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(2026, 11, 10, 19, 30, 0, 123_999), MOMENT),
        (datetime(2026, 11, 10, 19, 30, 0, 123_999, tzinfo=UTC), MOMENT),
        (datetime(2026, 11, 10, 21, 30, 0, 123_999, tzinfo=timezone(timedelta(hours=2))), MOMENT),
        (date(2026, 11, 10), MOMENT - 123 - (19 * 3600 + 1800) * 1000),
    ],
)
def test_time_columns_of_parquet(tmp_path: Path, moment: date, expected: int) -> None:
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [1, 2], "timestamp": [moment] * 2, "value": [1.0, 2.0]})
    frame.write_parquet(tmp_path / "e.parquet")
    dataset = read_table(tmp_path / "e.parquet", columns=RATED)
    assert dataset.user_ids == ("1",)
    assert dataset.events["time_ms"].tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ann,10,", ",10,", r"e\.csv: line 3, column 'user_id': got None, must be a user id .* \(1 such rows of 4\)"),
        ("bob", "b" * 257, r"line 2, column 'user_id': .* at most 256 bytes"),
        (",10,", ",10.5,", r"line 3, column 'item_id': got '10.5'"),
        (",30,", ",9223372036854775808,", r"line 2, column 'item_id': got '9223372036854775808'"),
        (",2000,", ",,", r"line 3, column 'timestamp': got None, must be a time from 1970 to 9999"),
        (",2000,", ",soon,", r"line 3, column 'timestamp': got 'soon'"),
        (
            ",2000,",
            ",-1,",
            r"line 3, column 'timestamp': got '-1', must be a time from 1970 to 9999, .*, in s",
        ),
        (",2000,", ",0,", r"line 3, column 'timestamp': got '0', must be .* at least 1 ms, in s"),
        (",1000,5", ",2026-13-01,5", r"line 2, column 'timestamp': got '2026-13-01', .* ISO-8601"),
        (",2000,", ",1794339000123,", r"column 'timestamp': 1000 to 1794339000123 do not tell their unit"),
        (",5\n", ",\n", r"line 2, column 'value': got None, must be a finite number"),
        (",4\n", ",NaN\n", r"line 4, column 'value': got 'NaN'"),
        (",4\n", ",-inf\n", r"line 4, column 'value': got '-inf'"),
        (",4\n", ",1e39\n", r"line 4, column 'value': got '1e39'"),
        (",4\n", ",good\n", r"line 4, column 'value': got 'good'"),
    ],
)
def test_bad_cell_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path / "e.csv", VALUES.replace(old, new))
    with pytest.raises(DataError, match=message):
        read_table(path, columns=RATED)


def test_ids_that_are_text_are_hashed_and_numbers_among_them_are_not(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", VALUES.replace(",20,", ",sku-20,"))
    items = write(tmp_path / "i.csv", "item_id,title\nsku-20,Twenty\n10,Ten\n007,Bond\n")
    columns = ColumnMapping(value="value")
    dataset = read_table(events, columns=columns, items=items)
    assert set(dataset.events["item_id"].tolist()) == {10, 30, item_id("sku-20")}
    assert [dataset.items.title(item_id(text)) for text in ("sku-20", "10", "30", "007")] == [
        "Twenty",
        "Ten",
        "",
        "Bond",
    ]
    assert item_id("007") != 7
    known = dataset.items.texts_of(np.array([item_id("sku-20"), 30, 5, item_id("007"), 10]))
    assert known == ("sku-20", "30", "", "007", "10")
    with pytest.raises(DataError, match=r"line 3, column 'item_id': got None, must be an item id"):
        read_table(write(tmp_path / "f.csv", VALUES.replace(",20,", ",b,").replace(",10,", ",,")), columns=columns)


def test_ids_are_integers_where_each_is_written_as_one(tmp_path: Path) -> None:
    rated = ColumnMapping(value="value")
    assert read_table(write(tmp_path / "e.csv", VALUES), columns=rated).items.texts is None
    padded = read_table(write(tmp_path / "f.csv", VALUES.replace(",20,", ",020,")), columns=rated).items
    assert padded.texts is not None
    assert "020" in padded.texts_of(padded.item_id)
    path = write(tmp_path / "g.csv", VALUES.replace(",20,", ",B07X,"))
    with pytest.raises(
        DataError, match=r"column 'item_id': got 'B07X', must be a 64-bit integer.*\(2 such rows of 4\)"
    ):
        read_table(path, columns=ColumnMapping(value="value", item_ids="integer"))
    text = ColumnMapping(value="value", item_ids="text")
    assert read_table(tmp_path / "e.csv", columns=text).items.texts_of(np.array([10, 11])) == ("10", "")


def test_text_that_no_request_can_name_is_refused(tmp_path: Path) -> None:
    for bad in ("a\0b", "\x7f", "x" * 257, "é" * 129):
        path = write(tmp_path / "e.csv", VALUES.replace(",20,", f",{bad},"))
        with pytest.raises(DataError, match=r"must be an item id .* 1 to 256 bytes of UTF-8 without control char"):
            read_table(path, columns=ColumnMapping(value="value"))


def test_two_texts_of_one_hash_are_refused(tmp_path: Path) -> None:
    taken = item_id("sku-20")  # a number that is written plainly is itself, so it can be the hash of another id
    path = write(tmp_path / "e.csv", VALUES.replace(",20,", ",sku-20,").replace(",10,", f",{taken},"))
    with pytest.raises(DataError, match=rf"'{taken}' and 'sku-20' have one hash; rename one of them"):
        read_table(path, columns=ColumnMapping(value="value", item_ids="text"))


def test_bad_cells_of_parquet(tmp_path: Path) -> None:
    good = pl.DataFrame({"user_id": ["a", "b"], "item_id": [1, 2], "timestamp": [5, 6], "value": [1.0, 2.0]})
    path = tmp_path / "e.parquet"
    for column, cells, message in (
        ("item_id", [1.0, 2.5], r"row 2, column .*: got 2\.5, must be a 64-bit integer"),
        ("item_id", [1.0, float("nan")], r"row 2, column .*: got nan"),
        ("item_id", [True, False], r"is Boolean, must be text or integers"),
        ("user_id", [1.5, 2.5], r"is Float64, must be a user id"),
        ("timestamp", [[1], [2]], r"is List\(Int64\), must be numbers"),
        ("timestamp", [None, datetime(2026, 1, 1)], r"row 1, column .*: got None, must be a time"),
        ("value", [1.0, float("inf")], r"row 2, column .*: got inf"),
        ("value", [None, 1.0], r"row 1, column .*: got None"),
    ):
        good.with_columns(pl.Series(column, cells)).write_parquet(path)
        with pytest.raises(DataError, match=message):
            read_table(path, columns=RATED)


def test_float_item_ids_that_are_whole_are_kept(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": [1.0, 2.0], "timestamp": [5, 6], "value": [1, 2]})
    frame.write_parquet(tmp_path / "e.parquet")
    assert read_table(tmp_path / "e.parquet", columns=RATED).items.item_id.tolist() == [1, 2]


def test_dates_without_separators_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "user_id,item_id,timestamp,value\na,1,20261110,1\na,2,20261111,2\n")
    with pytest.raises(DataError, match="look like dates"):
        read_table(path, columns=RATED)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, message in (
        ("e.xlsx", VALUES, "cannot tell what it is"),
        ("e.parquet", VALUES, "cannot be read as parquet"),
        ("e.csv", "", "is empty"),
        ("e.csv", "user_id,item_id,timestamp,value\n", "has no rows"),
        ("e.csv", "user,item,timestamp,value\n1,2,3,4\n", "has no column 'user_id', its columns are user, item"),
        (
            "e.csv",
            VALUES + "a,1,2,3,4,5\n",
            "cannot be read as text: line 6: 6 fields, the header has 4; the first too",
        ),
    ):
        with pytest.raises(DataError, match=message):
            read_table(write(tmp_path / name, content), columns=RATED)
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        read_table(tmp_path / "absent.csv", columns=RATED)


def test_too_many_actions(tmp_path: Path) -> None:
    lines = [f"a,1,1,action {index}" for index in range(33)]
    head = "user_id,item_id,timestamp,action"
    with pytest.raises(DataError, match=r"33 different actions .* at most 32"):
        read_table(write(tmp_path / "e.csv", "\n".join([head, *lines])), columns=ACTED)
    dataset = read_table(write(tmp_path / "e.csv", "\n".join([head, *lines[:32]])), columns=ACTED)
    assert np.bitwise_or.reduce(dataset.events["actions"]) == 2**32 - 1


def test_like_threshold(tmp_path: Path) -> None:
    head = "user_id,item_id,timestamp,value\n"
    rows = "".join(f"a,{index},{index + 1},{value}\n" for index, value in enumerate([0, 0, 0, 3, 9]))
    path = write(tmp_path / "e.csv", head + rows)
    assert read_table(path, columns=RATED).tasks[0].value_at_least == 3
    assert read_table(path, columns=RATED, like_at_least=9).tasks[0].value_at_least == 9
    with pytest.raises(DataError, match="task like: every event has label 0, so nothing can be learned; choose"):
        read_table(path, columns=RATED, like_at_least=10)
    with pytest.raises(DataError, match="like_at_least 3 needs a value column"):
        read_table(path, columns=ColumnMapping(), like_at_least=3)
    constant = write(tmp_path / "c.csv", head + "a,1,1,1\na,2,2,1\n")
    with pytest.raises(DataError, match="task like: every event has label 1"):
        read_table(constant, columns=RATED)


def test_nothing_to_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="every event is 'event', so there is nothing to tell apart; name a value column"
    ):
        read_table(write(tmp_path / "e.csv", VALUES), columns=ColumnMapping())


def test_tasks_of_the_caller(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", ACTIONS)
    engaged = Task(name="engaged", kind="binary", any_action=("cart", "purchase"))
    dataset = read_table(path, columns=ACTED, tasks=[engaged], blend={"engaged": 2.0}, name="shop")
    assert (dataset.name, dataset.tasks, dataset.blend) == ("shop", (engaged,), {"engaged": 2.0})
    for task, message in (
        (Task(name="x", kind="binary", any_action=("click",)), r"no event has action \['click'\]"),
        (Task(name="x", kind="binary", value_at_least=1), "no value column is named"),
        (Task(name="x", kind="regression"), "no value column is named"),
        (Task(name="x", kind="binary", any_action=("cart", "purchase", "view")), "task x: every event has label 1"),
    ):
        with pytest.raises(DataError, match=message):
            read_table(path, columns=ACTED, tasks=[task])
    with pytest.raises(DataError, match="several tasks have the same name"):
        read_table(path, columns=ACTED, tasks=[engaged, engaged])


ITEMS = """\
item_id,title,Film Genre,studio,stars,empty
30,"A ""quoted"", title",war| drama,Ö,3,
10,Plain,drama,,,
40,Never seen,,B,1.5,
"""


def test_items(tmp_path: Path) -> None:
    events = write(tmp_path / "e.csv", VALUES)
    dataset = read_table(events, columns=RATED, items=write(tmp_path / "i.csv", ITEMS))
    items = dataset.items
    assert items.item_id.tolist() == [10, 20, 30, 40]
    assert items.titles == ("Plain", "", 'A "quoted", title', "Never seen")
    assert [feature.name for feature in dataset.side_features] == ["film_genre", "studio", "stars"]
    assert side(dataset, "film_genre") == SideFeature(name="film_genre", kind="tags", vocabulary=("drama", "war"))
    assert items.side["film_genre"].tolist() == [[1, 0], [0, 0], [1, 1], [0, 0]]
    assert side(dataset, "studio") == SideFeature(name="studio", kind="category", vocabulary=("B", "Ö"))
    assert items.side["studio"].tolist() == [0, 0, 2, 1]
    assert side(dataset, "stars") == SideFeature(name="stars", kind="category", vocabulary=("1.5", "3"))
    assert items.side["stars"].tolist() == [0, 0, 2, 1]


def test_item_columns_are_chosen(tmp_path: Path) -> None:
    events, items = write(tmp_path / "e.csv", VALUES), write(tmp_path / "i.csv", ITEMS)
    chosen = ItemColumns(title="studio", side=("stars",))
    dataset = read_table(events, columns=RATED, items=items, item_columns=chosen)
    assert dataset.items.titles == ("", "", "Ö", "B")
    assert [feature.name for feature in dataset.side_features] == ["stars"]
    assert ItemColumns.model_validate({"side": "stars+Film Genre"}).side == ("stars", "Film Genre")
    assert read_table(events, columns=RATED, items=items, item_columns=ItemColumns(side=())).side_features == ()
    with pytest.raises(DataError, match=r"i\.csv: has no column 'colour'.*--item-columns says which"):
        read_table(events, columns=RATED, items=items, item_columns=ItemColumns(side=("colour",)))


def test_many_numbers_become_deciles(tmp_path: Path) -> None:
    price = np.arange(100.0)
    frame = pl.DataFrame({"item_id": np.arange(100), "price": price})
    frame.with_columns(
        pl.when(pl.col("item_id") == 7).then(None).otherwise(pl.col("price")).alias("price")
    ).write_parquet(tmp_path / "i.parquet")
    dataset = read_table(write(tmp_path / "e.csv", VALUES), columns=RATED, items=tmp_path / "i.parquet")
    code = dataset.items.side["price"]
    assert len(side(dataset, "price").vocabulary) == 10
    assert code[7] == 0
    known = np.delete(code, 7)
    assert (known[0], known[-1]) == (1, 10)
    assert np.all(np.diff(known) >= 0)
    assert np.bincount(known)[1:].min() >= 9


def test_lists_are_tags(tmp_path: Path) -> None:
    frame = pl.DataFrame({"item_id": [10, 20, 30], "tags": [["b", "a"], [], None], "ok": [True, None, False]})
    frame.write_parquet(tmp_path / "i.parquet")
    dataset = read_table(write(tmp_path / "e.csv", VALUES), columns=RATED, items=tmp_path / "i.parquet")
    assert dataset.items.side["tags"].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert side(dataset, "ok").vocabulary == ("false", "true")
    assert dataset.items.side["ok"].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "item_id,a\n10,x\n20,y\n10,z\n",
            r"line 4, column 'item_id': item 10 is in line 2 already, must have one row \(1 such items\)",
        ),
        ("item_id,a\n10,x\n1.5,y\n", r"line 3, column 'item_id': got '1.5'"),
        ("item_id,a b,a_b\n10,x,y\n", "two columns would both be side feature 'a_b'"),
        (
            "item_id,text\n" + "".join(f"{i},v{i}\n" for i in range(10_001)),
            "10001 different values, must have at most 10000",
        ),
        (
            "item_id,tags\n" + "".join(f"{i},a|t{i}\n" for i in range(1_000)),
            "1001 different values, must have at most 1000",
        ),
    ],
)
def test_bad_items_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path / "e.csv", VALUES), columns=RATED, items=write(tmp_path / "i.csv", content))


FEATURES = """\
user_id,item_id,timestamp,value,Price (EUR),place
bob,30,1000,5,1.5,1
ann,10,2000,1,,2
ann,20,1000,4,-2e3,3
"""


def test_features_are_numbers_of_the_item_as_it_was_shown(tmp_path: Path) -> None:
    columns = ColumnMapping.model_validate({"value": "value", "features": "Price (EUR) + place"})
    dataset = read_table(write(tmp_path / "e.csv", FEATURES), columns=columns)
    assert dataset.events["item_id"].tolist() == [20, 30, 10]
    (price, place) = dataset.dense
    assert (price, place) == ("price_eur", "place")
    np.testing.assert_array_equal(dataset.dense[price], np.array([-2e3, 1.5, np.nan], dtype=np.float32))
    assert dataset.dense[place].tolist() == [3, 1, 2]
    first, second = model_config(dataset, "dfgr").dense_features
    assert first.name == "price_eur"
    assert [first.center, first.scale] == pytest.approx([-999.25, 1000.75])
    assert (second.name, second.center) == ("place", 2)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (",1.5,", ",cheap,", "line 2, column 'Price (EUR)': got 'cheap', must be a finite number, or empty"),
        (",1.5,", ",inf,", "line 2, column 'Price (EUR)': got 'inf', must be a finite number, or empty"),
        (",1.5,", ",1e39,", "line 2, column 'Price (EUR)': got '1e39', must be a finite 32-bit float, or empty"),
        ("place", "PRICE-eur", "another feature is called 'price_eur' too"),
        ("Price (EUR)", "cost", "has no column 'Price (EUR)'"),
    ],
)
def test_features_that_are_no_numbers_are_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    features = ("Price (EUR)", "PRICE-eur" if new == "PRICE-eur" else "place")
    with pytest.raises(DataError) as refused:
        read_table(
            write(tmp_path / "e.csv", FEATURES.replace(old, new)),
            columns=ColumnMapping(value="value", features=features),
        )
    assert says in str(refused.value)


def test_a_feature_without_a_number_is_refused(tmp_path: Path) -> None:
    empty = "user_id,item_id,timestamp,value,price\nann,1,1000,1,\nann,2,2000,4,\n"
    with pytest.raises(DataError, match="column 'price' is empty"):
        read_table(write(tmp_path / "e.csv", empty), columns=ColumnMapping(value="value", features=("price",)))

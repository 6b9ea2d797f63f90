"""Every kind of bad file and bad setting that a newcomer meets: one screen that names the file, the place, the value
and what to do; no traceback, and nothing half written.
"""

import gzip
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from mfalcon.cli.main import main

HEAD = "user_id,item_id,timestamp,what,dwell\n"
EVENTS = HEAD + "".join(f"u{n % 5},{n % 7},{1790000000 + n},{('view', 'click')[n % 2]},{n % 5}\n" for n in range(40))
LINE_3 = "u1,1,1790000001,click,1\n"
ITEMS = "item_id,title,kind\n1,One,a\n2,Two,b\n"
TOML = '[[tasks]]\nname = "click"\nkind = "binary"\nany_action = ["click"]\n'


def changed(line: str) -> bytes:
    """The events with another third line."""
    assert EVENTS.count(LINE_3) == 1
    return EVENTS.replace(LINE_3, line).encode()


def parquet(**columns: Sequence[object]) -> bytes:
    file, good = io.BytesIO(), pl.read_csv(io.StringIO(EVENTS))
    good.with_columns(pl.Series(name, cells) for name, cells in columns.items()).write_parquet(file)
    return file.getvalue()


@dataclass(frozen=True)
class Bad:
    """files: by name, beside good ones. options: behind the usual ones. told: what the message has."""

    told: Sequence[str]
    events: bytes = EVENTS.encode()
    name: str = "e.csv"
    files: Mapping[str, bytes] = field(default_factory=dict)
    options: Sequence[str] = ()
    columns: str = "action=what,value=dwell"
    prepare: Callable[[Path], None] = lambda _: None


def toml(content: str, *told: str) -> Bad:
    return Bad(("t.toml: ", *told), files={"t.toml": content.encode()}, options=("--config", "t.toml"))


def items(content: str, *told: str) -> Bad:
    return Bad(("i.csv: ", *told), files={"i.csv": content.encode()}, options=("--items", "i.csv"))


def folder_in_the_way(path: Path) -> None:
    (path / "out").mkdir()
    (path / "out" / "thesis.txt").write_text("mine")


KINDS = {
    "one stray quote": Bad(("line 3: a quote", "never ends"), changed('"' + LINE_3)),
    "a quote that another one ends": Bad(
        ("line 3: text follows a closing quote",), changed('"' + LINE_3) + b'u1,"2,1790000100,view,1\n'
    ),
    "a field too many": Bad(("line 3: 6 fields, the header has 5", "'9'"), changed("u1,1,1790000001,click,1,9\n")),
    "a field too few": Bad(("line 3, column 'dwell': got None",), changed("u1,1,1790000001,click\n")),
    "a blank line": Bad(("line 3, column 'user_id': got None",), changed("\n")),
    "an item id that is half a number": Bad(
        ("line 3, column 'item_id': got '1.5'",), changed("u1,1.5,1790000001,click,1\n")
    ),
    "a time that is a word": Bad(("line 3, column 'timestamp': got 'soon'",), changed("u1,1,soon,click,1\n")),
    "one time in other units": Bad(("'timestamp'", "give time_unit"), changed("u1,1,1790000001000,click,1\n")),
    "seconds as milliseconds": Bad(
        ("line 2, column 'timestamp': got '1790000000'", "January 1970", "time_unit=s, perhaps"),
        columns="action=what,value=dwell,time_unit=ms",
    ),
    "a value that is a word": Bad(("line 3, column 'dwell': got 'long'",), changed("u1,1,1790000001,click,long\n")),
    "NaN": Bad(("line 3, column 'dwell': got 'NaN'", "leave the rows out"), changed("u1,1,1790000001,click,NaN\n")),
    "an infinite value": Bad(("line 3, column 'dwell': got '1e999'",), changed("u1,1,1790000001,click,1e999\n")),
    "no user": Bad(("line 3, column 'user_id': got None",), changed(",1,1790000001,click,1\n")),
    "a user id of a novel": Bad(("line 3, column 'user_id': got 'uuu", "256 bytes"), changed("u" * 99999 + LINE_3)),
    "an empty file": Bad(("e.csv: is empty",), b""),
    "no rows": Bad(("e.csv: has no rows",), HEAD.encode()),
    "a missing column": Bad(
        ("no column 'what'", "--columns", "('whet', perhaps)"), EVENTS.replace("what", "whet").encode()
    ),
    "two columns of one name": Bad(
        ("line 1: columns 3, 5 are all called 'timestamp'",), EVENTS.replace("dwell", "timestamp", 1).encode()
    ),
    "semicolons": Bad(("line 1: 'user_id;item_id", "semicolons, must be by commas"), EVENTS.replace(",", ";").encode()),
    "Latin-1": Bad(
        ("line 3, byte 2: b'\\xe9' is not UTF-8", "iconv"),
        changed("ué,1,1790000001,click,1\n").decode().encode("latin-1"),
    ),
    "UTF-16": Bad(("line 1: has zero bytes, as UTF-16 has", "iconv"), EVENTS.encode("utf-16")),
    "a gzip file cut off": Bad(
        ("the gzip stream is damaged or ends early",), gzip.compress(EVENTS.encode())[:-9], "e.csv.gz"
    ),
    "no gzip file": Bad(("the gzip stream is damaged",), b"\x1f\x8b is no stream", "e.csv.gz"),
    "a name that says nothing": Bad(("e.xlsx: cannot tell what it is",), name="e.xlsx"),
    "Parquet that is text": Bad(("e.parquet: cannot be read as parquet", "PAR1"), name="e.parquet"),
    "Parquet cut off": Bad(("cut off",), parquet()[:-100], "e.parquet"),
    "Parquet with a damaged footer": Bad(
        ("e.parquet: cannot be read as parquet",), parquet()[:-60] + b"?" * 56 + b"PAR1", "e.parquet"
    ),
    "Parquet with a number for a user": Bad(
        ("'user_id' is Float64, must be a user id",), parquet(user_id=[1.5] * 40), "e.parquet"
    ),
    "Parquet with a missing time": Bad(
        ("row 40, column 'timestamp': got None",), parquet(timestamp=[1790000000] * 39 + [None]), "e.parquet"
    ),
    "an unknown part of a split": Bad(
        ("line 2, column 'dwell': got '0', must be one of train, validation, test, unused",),
        columns="action=what,split=dwell",
    ),
    "zero bytes in a field": Bad(("line 3, column 'dwell': got '\\x00'",), changed("u1,1,1790000001,click,\0\n")),
    "a gzip file by the name of another": Bad(
        ("e.parquet: cannot be read as parquet",), gzip.compress(b"x"), "e.parquet"
    ),
    "a folder without Parquet files": Bad(
        ("i.csv: ", "has no Parquet files"), options=("--items", "i.csv"), prepare=lambda path: (path / "i.csv").mkdir()
    ),
    "a file that is not there": Bad(("f.csv: cannot be read", "No such file"), options=("--items", "f.csv")),
    "a column twice in a mapping": Bad(("--columns: user is given twice",), columns="user=what,user=dwell"),
    "a mapping of nothing": Bad(("--columns: got 'action', must be name=column",), columns="action"),
    "an unknown name in a mapping": Bad(("--columns: ", "acton", "(action, perhaps)"), columns="acton=what"),
    "a scratch that is not there": Bad(
        ("--scratch: nowhere is no folder",), options=("--tasks", "auto", "--scratch", "nowhere")
    ),
    "a split that is said twice": Bad(
        ("--split: got B, must not be given where --columns names a column",),
        EVENTS.replace(",3\n", ",train\n")
        .replace(",4\n", ",test\n")
        .replace(",2\n", ",validation\n")
        .replace(",1\n", ",train\n")
        .replace(",0\n", ",unused\n")
        .encode(),
        columns="action=what,split=dwell",
        options=("--tasks", "auto", "--split", "B"),
    ),
    "only one action": Bad(
        ("every event is 'view'", "name a value column"),
        EVENTS.replace("click", "view").encode(),
        columns="action=what",
    ),
    "several actions and no tasks": Bad(("e.csv: has several actions", "--tasks auto")),
    "an item twice": items(ITEMS + "1,Uno,c\n", "line 4, column 'item_id': item 1 is in line 2 already"),
    "an item table with a stray quote": items(ITEMS + '3,"Three,c\n', "line 4: a quote"),
    "TOML syntax": toml(TOML + "any = [\n\nx", "line 7", "'x'"),
    "an unknown table": toml("[trainnig]\nepochs = 1\n", "line 1: trainnig: unknown name (training, perhaps)"),
    "an unknown key": toml(TOML + "[training]\nepoch = 1\n", "line 6: training.epoch: unknown name (epochs, perhaps)"),
    "a word for a number": toml("[training]\nepochs = 'many'\n", "line 2: training.epochs", "(got 'many')"),
    "a task of an unknown action": Bad(
        ("e.csv: task click: no event has action ['klick']", "the actions are ('click', 'view')"),
        files={"t.toml": TOML.replace('["click"]', '["klick"]').encode()},
        options=("--config", "t.toml"),
    ),
    "a blend of an unknown task": toml(TOML + "[blend]\nbuy = 1\n", "blend.buy: no such task; the tasks are click"),
    "a settings file that is not there": Bad(
        ("t.toml: cannot be read as TOML: No such file",), options=("--config", "t.toml")
    ),
    "a setting out of range": Bad(
        ("--learning-rate", "(got -1.0)"), options=("--tasks", "auto", "--learning-rate", "-1")
    ),
    "an out that is somebody else's": Bad(
        ("out: exists and is no checkpoint",), options=("--tasks", "auto"), prepare=folder_in_the_way
    ),
    "an out below a file": Bad(
        ("e.csv cannot be written to", "name an --out"), options=("--tasks", "auto", "--out", "e.csv/out")
    ),
}


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_told_in_one_screen(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    for name, content in {bad.name: bad.events, **bad.files}.items():
        Path(name).write_bytes(content)
    bad.prepare(tmp_path)
    before = entries(tmp_path)
    out = () if "--out" in bad.options else ("--out", "out")
    asked = ("train", "--data", bad.name, "--columns", bad.columns, *out, *bad.options)
    monkeypatch.setattr(sys, "argv", ["mfalcon", *asked])
    with pytest.raises(SystemExit) as end:
        main()
    told = capsys.readouterr().err
    assert end.value.code == 1
    assert "Traceback" not in told and "site-packages" not in told
    assert len(told) < 1_500 and told.count("\n") < 20
    error = told[told.index("error: ") :]
    for words in bad.told:
        assert words in error
    assert entries(tmp_path) == before


def test_good_files_are_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks odd and is well: a mark of UTF-8, a name of gzip on plain text, a folder of Parquet files."""
    monkeypatch.chdir(tmp_path)
    Path("bom.csv").write_bytes(b"\xef\xbb\xbf" + EVENTS.encode())
    Path("plain.csv.gz").write_text(EVENTS)
    Path("folder/day=1").mkdir(parents=True)
    for name in ("folder/a.parquet", "folder/day=1/b.parquet"):
        Path(name).write_bytes(parquet())
    for name in ("bom.csv", "plain.csv.gz", "folder"):
        asked = ("train", "--data", name, "--columns", "action=what,value=dwell", "--tasks", "propose")
        monkeypatch.setattr(sys, "argv", ["mfalcon", *asked])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, name

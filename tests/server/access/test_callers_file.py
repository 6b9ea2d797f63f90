"""What is wrong with a file of callers is named with its place, and no value of it is shown."""

import logging
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfalcon.errors import ConfigError
from server.access.callers_file import parse_callers
from server.access.watched import Watched
from server.config import load_config
from tests.server.access.credentials import access_of, in_days, table, written
from tests.server.harness import FREE_PORTS

GOOD = table("web", ["rank"], [("t", None)])
HASH = GOOD.split('sha256 = "')[1][:64]
BAD = {
    "no TOML": ("[[callers]\n", "line 1"),
    "empty": ("", "grants nothing to anybody: it has no token, certificate or subject"),
    "expired": (table("web", ["rank"], [("t", in_days(-1))]), "grants nothing to anybody: every token in it has"),
    "no credential": (table("web", ["rank"]), "grants nothing to anybody"),
    "the token in place of its hash": (GOOD.replace(HASH, "mfk_secret"), "callers[0].tokens[0].sha256: must be 64 hex"),
    "capital letters": (GOOD.replace(HASH, HASH.upper()), "callers[0].tokens[0].sha256: must be 64 hex"),
    "a right that there is not": (GOOD.replace('"rank"', '"rnak"'), "callers[0].rights[0]: must be one of rank, app"),
    "no rights": (GOOD.replace('"rank"', ""), "callers[0].rights: "),
    "no name": (GOOD.replace('name = "web"', ""), "callers[0].name: must be given"),
    "a name with a space": (GOOD.replace('"web"', '"we b"'), "callers[0].name: must be 1 to 64 of the characters"),
    "a name with a line break": (GOOD.replace('"web"', '"web\\n"'), "callers[0].name: must be 1 to 64 of the char"),
    "a name twice": (
        GOOD + table("web", ["read"], [("u", None)]),
        "callers[1].name: got 'web' again, must be a name that is given once: a caller's next token is a "
        "[[callers.tokens]] table below its first",
    ),
    "a token twice": (GOOD + table("app", ["read"], [("t", None)]), "callers[1].tokens[0].sha256: must be a hash that"),
    "a key that there is not": (GOOD + "secret = 1\n", "callers[0].tokens[0].secret: must be absent"),
    "a table that there is not": ("[caller]\n", "caller: must be absent"),
    "a local time": (f"{GOOD}expires = 2027-01-01T00:00:00\n", "callers[0].tokens[0].expires: must be a time with an"),
    "a certificate of two names": (
        f'{GOOD}[[callers.certificates]]\nuri = "spiffe://a"\ncn = "a"\n',
        "callers[0].certificates[0]: must have one of uri, dns and cn",
    ),
    "a certificate twice": (
        table("a", ["rank"], (), ['cn = "a"']) + table("b", ["rank"], (), ['cn = "a"']),
        "callers[1].certificates[0]: must be a name of a certificate that is given once",
    ),
    "too much": ("#" * 2**20 + "\n", "got more, must be at most 1048576 bytes"),
}


@pytest.mark.parametrize("shown", BAD)
def test_a_bad_file_ends_a_start_and_changes_nothing_later(
    tmp_path: Path, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    text, says = BAD[shown]
    path = written(tmp_path / "callers.toml", text)
    with pytest.raises(ConfigError) as refused:
        access_of(path)
    assert str(refused.value).startswith(f"tokens_file: {path}: ")
    assert says in str(refused.value)
    assert "mfk_secret" not in str(refused.value) and refused.value.__cause__ is None

    written(path, GOOD)
    access = access_of(path)
    written(path, text)
    with caplog.at_level(logging.ERROR):
        access.look()
        access.look()
    assert len(caplog.records) == 1 and says in caplog.text and "stays in force" in caplog.text
    assert access.caller("Bearer t").name == "web"
    written(path, GOOD)
    access.look()
    written(path, text)
    access.look()
    assert len(caplog.records) == 2


def test_a_file_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"tokens_file: .*none\.toml: cannot be read: No such file"):
        access_of(tmp_path / "none.toml")
    path = written(tmp_path / "callers.toml", GOOD)
    access = access_of(path)
    path.unlink()
    access.look()
    access.look()
    assert access.caller("Bearer t").name == "web" and len(caplog.records) == 1


def test_what_is_still_being_written_waits_for_the_next_look(tmp_path: Path) -> None:
    """Half a file may be good TOML: of a token, all but the line that says when it expires."""
    path = tmp_path / "callers.toml"

    def parse(contents: bytes) -> str:
        if contents == b"half":
            path.write_text("half and more")
        return contents.decode()

    path.write_text("before")
    watched = Watched("tokens_file", path, parse)
    path.write_text("half")
    assert watched.fresh() is None
    assert watched.fresh() == (b"half and more", "half and more")


def test_a_link_that_is_turned_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes does with a Secret."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "callers.toml", table(name, ["rank"], [(name, None)]))
    (tmp_path / "now").symlink_to("one")
    access = access_of(tmp_path / "now" / "callers.toml")
    assert access.caller("Bearer one").name == "one"
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(tmp_path / "now")
    access.look()
    assert access.caller("Bearer two").name == "two"


def test_the_path_is_that_of_whoever_starts_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, FREE_PORTS | {"tokens_file": "callers.toml"}).tokens_file == tmp_path / "callers.toml"


@given(st.binary(max_size=200))
def test_what_is_no_file_of_callers_is_a_config_error(contents: bytes) -> None:
    for raw in (contents, GOOD.encode() + contents, b"[[callers]]\nname=" + contents):
        try:
            parse_callers(raw, datetime.now().timestamp())
        except ConfigError:
            continue

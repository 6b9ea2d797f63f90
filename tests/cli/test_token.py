"""`mfalcon token new`: what it prints is a file that a server takes, and the token that opens it."""

import json
from pathlib import Path

from typer.testing import CliRunner

from mfalcon.cli.token import app
from mfalcon.errors import ConfigError
from tests.server.access.credentials import access_of


def test_a_new_token_opens_a_server_with_what_was_printed(tmp_path: Path) -> None:
    words = ["new", "--name", "web", "--right", "rank", "--right", "append", "--days", "90"]
    made = [CliRunner().invoke(app, words) for _ in range(2)]
    tokens = [result.stderr.strip() for result in made]
    assert tokens[0] != tokens[1] and all(len(token) == 47 and token.startswith("mfk_") for token in tokens)
    path = tmp_path / "callers.toml"
    path.write_text(made[0].stdout)
    assert tokens[0] not in made[0].stdout
    caller = access_of(path).caller(f"Bearer {tokens[0]}")
    assert caller.name == "web" and sorted(caller.rights) == ["append", "rank"]
    # A second token of a caller that is there: what is printed goes below its table.
    more = CliRunner().invoke(app, ["new", "--name", "web"])
    path.write_text(made[0].stdout + more.stdout)
    for token in (tokens[0], more.stderr.strip()):
        assert access_of(path).caller(f"Bearer {token}").name == "web"
    assert "not at the end of the file" in more.stdout


def test_for_programs() -> None:
    told = json.loads(CliRunner().invoke(app, ["new", "--name", "web", "--right", "rank", "--json"]).stdout)
    assert told["name"] == "web" and told["rights"] == ["rank"] and len(told["sha256"]) == 64
    assert told["token"].startswith("mfk_") and told["expires"] is None


def test_a_name_that_is_none() -> None:
    result = CliRunner().invoke(app, ["new", "--name", "two words", "--right", "rank"])
    assert isinstance(result.exception, ConfigError) and "--name: got 'two words'" in str(result.exception)

"""What the documents have a reader type is there: commands and their options, targets of make, modules. Nothing is run
here; test_runs.py says of each command which test runs it.
"""

import re
from pathlib import Path

import pytest

from mfalcon.cli.main import COMMANDS
from tests.documents.reading import ROOT, TYPED, Block, blocks, blocks_of, commands, commands_of, inline, words_of
from tests.documents.typed import CALLED, check, check_names, flags_of, loaded

FOREIGN = {
    "--appendfsync", "--appendonly", "--build", "--build-arg", "--go", "--go-grpc", "--host", "--read-only", "--scan",
    "--pattern", "--total-queued-requests-metric",
}  # fmt: skip
"""Options of other programs that the pages name: Redis, Docker, Locust, protoc, a gateway."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", TYPED)
def test_commands_in_blocks_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("build", "docs/results"):  # where the pages have results written
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for command in commands_of(page):
        if command.words[0] == "mfalcon":
            check(command.words[1:])


@pytest.mark.parametrize("page", TYPED)
def test_commands_in_sentences_and_comments_parse(page: str) -> None:
    text = text_of(page)
    comments = [comment for block in blocks(text) for comment in re.findall(r"#(.*)", block.text)]
    for quote in [*inline(text), *comments]:
        for call in CALLED.finditer(quote):
            check_names(words_of(quote[call.end() :].split("`")[0]))


@pytest.mark.parametrize("page", TYPED)
def test_options_in_sentences_exist(page: str) -> None:
    quotes = [quote for quote in inline(text_of(page)) if quote.startswith("--")]
    named = {flag for quote in quotes for flag in re.findall(r"(?:^|(?<=\s))--[a-z][a-z0-9-]*", quote)}
    assert not named - FOREIGN - set().union(*(flags_of(loaded(name)) for name in COMMANDS))


@pytest.mark.parametrize("page", TYPED)
def test_targets_and_modules_exist(page: str) -> None:
    text = "\n".join([*(block.text for block in blocks_of(page)), *inline(text_of(page))])
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|(?<=\s))make ([a-z-]+)", text)) <= targets
    for module in re.findall(r"python3? -m ((?:kernels|mfalcon|server|loadtest|tests)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("    mfalcon rnak --user 1\n", "there is no mfalcon rnak"),
        ("    mfalcon log repair DIR\n", "log has no repair"),
        ("    mfalcon serve --redis-ulr x\n", "--redis-ulr"),
        ("    mfalcon rank --user 1 --topp 3\n", "--topp"),
        ("    mfalcon rank --user 1 --top many\n", "many"),
        ("    mfalcon rank --top 3\n", "Missing parameter: user"),
        ("    mfalcon history 1 2\n", "unexpected extra"),
        ("    mfalcon serve ranker --graph-dir /srv/vectors\n", "ranker"),
        ("    mfalcon serve --checkpoint a --event-log disk\n", "event_log"),
        ("    cd x && .venv/bin/mfalcon rank \\\n        --user 1 --topp 3   # a comment\n", "--topp"),
        ("```sh\ncurl 'a\nb' | mfalcon rank --user 1 --topp 3 >file\n```\n", "--topp"),
    ],
)
def test_the_search_itself(line: str, fault: str) -> None:
    (*_, command) = (command for block in blocks(line) for command in commands(block))
    assert command.words[0] == "mfalcon"
    with pytest.raises(Exception, match=fault):
        check(command.words[1:])


def test_blocks_are_found_in_order_with_their_language() -> None:
    page = "Text\n\n    mfalcon rank --user 1\n\n```python\nx = 1\n\n    y\n```\n\n    [a]\n    b = 1\n\n    c = 2\n"
    found = [(block.line, block.language, block.text) for block in blocks(page)]
    assert found == [
        (3, "sh", "mfalcon rank --user 1\n"),
        (5, "python", "x = 1\n\n    y\n"),
        (11, "toml", "[a]\nb = 1\n\nc = 2\n"),
    ]
    assert not list(commands(Block("", "", 1, "python", "make = 1\n")))

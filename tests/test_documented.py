"""What the documents have a reader type is there: commands and their options, targets of make, modules, links.

Nothing is run. Measured pages (docs/results, docs/LOG.md) tell what was run in their day, and are left out.
"""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer

from mfalcon.cli.main import COMMANDS, load_command
from server.config import ServerConfig

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
    "client/README.md",
]
HISTORY = ("CHANGELOG.md", "docs/LOG.md")
TYPED = [page for page in PAGES if page not in HISTORY]
CALLED = re.compile(r"(?:^|(?<=[\s(;&|]))(?<!-n )(?:\.venv/bin/)?mfalcon (?=[a-z])")
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no name for it
FOREIGN = {
    "--appendfsync", "--appendonly", "--build", "--build-arg", "--host", "--read-only", "--scan", "--pattern",
    "--total-queued-requests-metric",
}  # fmt: skip
"""Options of other programs that the pages name: Redis, Docker, Locust, a gateway."""


def blocks(text: str) -> list[str]:
    """The indented blocks of a page, continued lines joined."""
    found = re.findall(r"(?:(?:^ {4,}.*\n)|^\n(?= {4}))+", text, re.MULTILINE)
    return [re.sub(r"\\\n\s*", "", block) for block in found]


def inline(text: str) -> list[str]:
    """What stands between backticks, also over the end of a line."""
    prose = re.sub(r"^ {4,}.*\n", "\n", text, flags=re.MULTILINE)
    return [" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", prose)]


def words_of(line: str) -> list[str]:
    """The words of one command, without a comment, redirections and what is piped."""
    lexer = shlex.shlex(line.replace("…", "..."), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set("|&;<>()"):
            break
        words.append(word)
    return words


def commands(text: str) -> Iterator[list[str]]:
    """Of every call of mfalcon in a block the words behind `mfalcon`."""
    for block in blocks(text):
        for line in block.splitlines():
            for call in CALLED.finditer(line):
                yield words_of(line[call.end() :])


@cache
def loaded(name: str) -> Any:
    return load_command(name)


def resolved(words: list[str]) -> tuple[Any, list[str]]:
    """A command, the innermost of its group, and its arguments."""
    assert words[0] in COMMANDS, f"there is no mfalcon {words[0]}"
    command, rest = loaded(words[0]), words[1:]
    while hasattr(command, "commands"):
        if not rest:
            return command, rest
        assert rest[0] in command.commands, f"{command.name} has no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def flags_of(command: Any) -> set[str]:
    """The options of a command, and of those in its group."""
    if command.name == "serve" and command is loaded("serve"):
        return {f"--{name.replace('_', '-')}" for name in ServerConfig.model_fields} | {"--config", "--help"}
    found = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    return found.union({"--help"}, *(flags_of(inner) for inner in getattr(command, "commands", {}).values()))


def check_names(words: list[str]) -> None:
    """There are such a command and such options."""
    command, arguments = resolved(words)
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert not flags - flags_of(command), f"mfalcon {command.name} has no {flags - flags_of(command)}"


def check(words: list[str]) -> None:
    """Nothing is missing either, and values are such as the options take."""
    check_names(words)
    command, arguments = resolved(words)
    if command is loaded("serve") or "..." in arguments:
        return
    try:
        command.make_context(command.name, list(arguments))
    except UsageError as error:
        assert "does not exist" in str(error), f"mfalcon {' '.join(words)}: {error}"  # a reader's own file


@pytest.mark.parametrize("page", TYPED)
def test_commands_in_blocks_parse(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("build", "docs/results"):  # where the pages have results written
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for words in commands((ROOT / page).read_text()):
        check(words)


@pytest.mark.parametrize("page", TYPED)
def test_commands_in_sentences_parse(page: str) -> None:
    for quote in inline((ROOT / page).read_text()):
        for call in CALLED.finditer(quote):
            check_names(words_of(quote[call.end() :]))


@pytest.mark.parametrize("page", TYPED)
def test_options_in_sentences_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    quotes = [quote for quote in inline(text) if quote.startswith("--")]
    named = {flag for quote in quotes for flag in re.findall(r"(?:^|(?<=\s))--[a-z][a-z0-9-]*", quote)}
    assert not named - FOREIGN - set().union(*(flags_of(loaded(name)) for name in COMMANDS))


@pytest.mark.parametrize("page", TYPED)
def test_targets_and_modules_exist(page: str) -> None:
    text = "\n".join([*blocks(text := (ROOT / page).read_text()), *inline(text)])
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|(?<=\s))make ([a-z-]+)", text)) <= targets
    for module in re.findall(r"python -m ((?:kernels|mfalcon|server|loadtest|tests)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        path = (ROOT / page).parent / parts.path if parts.path else ROOT / page
        assert path.exists(), link
        if parts.fragment and path.suffix == ".md":
            assert parts.fragment in headings(path), link


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
        ("    cd x && .venv/bin/mfalcon rank \\\n        --user 1 --topp 3   # a comment\n", "--topp"),
    ],
)
def test_the_search_itself(line: str, fault: str) -> None:
    (words,) = commands(line)
    with pytest.raises(Exception, match=fault):
        check(words)

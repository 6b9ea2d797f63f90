"""What the documents hold, read from them: blocks in the order of their page, each with its language; commands; what
stands between backticks; headings; links. Nothing of it is copied into a test.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]),
    "client/README.md",
]
HISTORY = ("CHANGELOG.md", "docs/LOG.md")
"""They tell what was run in their day."""
TYPED = [page for page in PAGES if page not in HISTORY]
PROGRAMS = (
    "mfalcon", "make", "curl", "python", "python3", "pip", "pytest", "docker", "kind", "kubectl", "redis-server",
    "openssl", "tail", "locust", "mkdocs", "go",
)  # fmt: skip
"""What readers are told to type begins with one of these."""
SHELLS = {"bash": "sh", "console": "sh", "shell": "sh"}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|((?:^ {4,}[^\n]*\n|^\n(?= {4}))+)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code of a page. section: the heading above; line: that of the page where it begins; text: as a reader
    copies it.
    """

    page: str
    section: str
    line: int
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page. words: its program's name first; into: the file that it writes its output to, or ""."""

    page: str
    section: str
    line: int
    words: tuple[str, ...]
    into: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


def _is_toml(text: str) -> bool:
    try:
        return bool(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        return False


def language_of(text: str) -> str:
    """What an indented block is written in."""
    if re.search("[\u2190-\u257f]", text):  # arrows and lines: a picture
        return "text"
    first = text.lstrip().split("\n", 1)[0]
    if re.match(rf"(\.venv/bin/)?({'|'.join(PROGRAMS)}|source|export|cd) |\w+=\S", first):
        return "sh"
    if re.match(r"(import|from|with|async with|for|def|class) |\w[\w.]* = |[\w.]+\(", first):
        return "toml" if _is_toml(text) else "python"
    if first.startswith("["):
        return "toml"
    return "json" if first.startswith('{"') else "text"


def blocks(text: str, page: str = "") -> list[Block]:
    """The blocks of a page, fenced or indented, in its order."""
    found = []
    for match in _BLOCK.finditer(text):
        fence, fenced, indented = match.groups()
        code = fenced if indented is None else dedent(indented).strip("\n") + "\n"
        blank = 0 if indented is None else len(indented) - len(indented.lstrip("\n"))
        before = text[: match.start()]
        section = next(reversed(re.findall(r"^#+ (.*)$", _BLOCK.sub("\n", before), re.MULTILINE)), "")
        language = (fence if indented is None else "") or language_of(code)
        found.append(Block(page, section, before.count("\n") + blank + 1, SHELLS.get(language, language), code))
    return found


def blocks_of(page: str, language: str | None = None) -> list[Block]:
    """The blocks of a page of the repository."""
    found = blocks((ROOT / page).read_text(encoding="utf-8"), page)
    return [block for block in found if language in (None, block.language)]


def prose(text: str) -> str:
    """A page without its blocks."""
    return _BLOCK.sub("\n", text)


def inline(text: str) -> list[str]:
    """What stands between backticks, also over the end of a line."""
    return [" ".join(quote.split()) for quote in re.findall(r"`([^`]+)`", prose(text))]


def simple_commands(line: str) -> list[tuple[list[str], str]]:
    """Of each command of a line the words, without comments, and the file that its output goes to, or "". Raises
    ValueError in an open quote.
    """
    lexer = shlex.shlex(line.replace("…", "..."), posix=True, punctuation_chars="|&;<>()\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    found: list[tuple[list[str], str]] = [([], "")]
    before = ""
    for word in lexer:
        words, _ = found[-1]
        if set(word) <= set("|&;()\n"):
            found.append(([], ""))
        elif set(word) <= set("<>&"):
            before = (words.pop() if words[-1:] in (["1"], ["2"]) else "") + word  # the number of an output, if any
            continue
        elif before in (">", ">>", "1>"):
            found[-1] = words, word
        elif not set(before) & set("<>"):
            words.append(word)
        before = word
    return [(words, into) for words, into in found if words]


def words_of(line: str) -> list[str]:
    """The words of the first command of a line."""
    return next((words for words, _ in simple_commands(line)), [])


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a block with their numbers from 0; one that ends in a backslash or within quotes goes on."""
    held, begun = "", 0
    for number, line in enumerate(text.splitlines()):
        begun = begun if held else number
        held += line
        if line.endswith("\\"):
            held = held[:-1].rstrip() + " "
            continue
        try:
            words_of(held)
        except ValueError:  # a quote is open
            held += "\n"
            continue
        yield begun, held
        held = ""
    assert not held, f"a quote is never closed: {held}"


def commands(block: Block) -> Iterator[Command]:
    """Every command of a block of commands that begins with one of PROGRAMS."""
    if block.language != "sh":
        return
    for number, line in logical_lines(block.text):
        for words, into in simple_commands(line):
            program = words[0].removeprefix(".venv/bin/")
            if program in PROGRAMS:
                yield Command(block.page, block.section, block.line + number, (program, *words[1:]), into)


def commands_of(page: str) -> list[Command]:
    """Every command of the blocks of a page, in its order."""
    return [command for block in blocks_of(page) for command in commands(block)]


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def links(text: str) -> list[str]:
    """Where the links of a page lead."""
    return re.findall(r"\]\(([^)\s]+)\)", text)

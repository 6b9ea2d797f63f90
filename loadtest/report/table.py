"""A table of results and the two forms that it has: aligned text for people, Markdown for the documents.

Nothing here needs more than the standard library.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_COLUMNS = 120


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


Part: TypeAlias = str | Table
"""A page is a sequence of them: text that stands as it is, and tables."""


def as_text(parts: Iterable[Part]) -> str:
    """Words to the left and numbers to the right."""
    return "\n\n".join(part if isinstance(part, str) else _aligned(part) for part in parts)


def as_markdown(parts: Iterable[Part]) -> str:
    """As GitHub renders it, prose in lines of at most 120 columns."""
    return "\n\n".join(_filled(part) if isinstance(part, str) else _piped(part) for part in parts)


def _aligned(table: Table) -> str:
    widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
    numeric = [bool(table.rows) and all(_is_number(row[index]) for row in table.rows) for index in range(len(widths))]

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in parts).rstrip()

    return "\n".join(
        [table.title, line(table.columns), line(["-" * width for width in widths]), *map(line, table.rows)]
    )


def _filled(text: str) -> str:
    return "\n".join(
        textwrap.fill(
            line,
            _COLUMNS,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        if len(line) > _COLUMNS and not line.startswith((" ", "|"))
        else line
        for line in text.split("\n")
    )


def _piped(table: Table) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table.title}\n\n{rows}" if table.title else rows


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.lstrip("+-")[:1].isdigit()

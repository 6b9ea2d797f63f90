"""What the device benchmarks hand over: JSON that a kill cannot tear, tables of plain text, bars that are met or not.

Nothing here needs more than the standard library.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.report.machine import Machine
from loadtest.report.timing import Spread

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that is asked for. value, holds: None if no cell of it was measured. by: what it was read off."""

    name: str
    value: float | None
    limit: float
    at_most: bool
    holds: bool | None
    by: str = "-"

    @classmethod
    def most(cls, name: str, value: float | None, limit: float, by: str = "-") -> "Bar":
        """At most the limit."""
        return cls(name, value, limit, at_most=True, holds=None if value is None else value <= limit, by=by)

    @classmethod
    def least(cls, name: str, value: float | None, limit: float, by: str = "-") -> "Bar":
        """At least the limit."""
        return cls(name, value, limit, at_most=False, holds=None if value is None else value >= limit, by=by)

    @property
    def asked(self) -> str:
        """The limit and its side."""
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"

    @property
    def measured(self) -> str:
        """The value, or that there is none."""
        return NOT_MEASURED if self.value is None else f"{self.value:.4g}"

    @property
    def verdict(self) -> str:
        """Whether it holds, in a word."""
        return "-" if self.holds is None else "yes" if self.holds else "NO"


def bar_table(bars: Sequence[Bar]) -> str:
    """Every bar, what was measured, and whether that meets it."""
    rows = [(bar.name, bar.asked, bar.measured, bar.verdict, bar.by) for bar in bars]
    return text_table("Bars", ("figure", "bar", "measured", "holds", "read off"), rows)


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A titled table, words to the left and numbers to the right."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    numeric = [bool(rows) and all(_number(row[index]) for row in rows) for index in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        parts = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in parts).rstrip()

    return "\n".join([title, line(columns), line(["-" * width for width in widths]), *map(line, rows)])


def device_headline(machine: Machine, commit: str | None) -> str:
    """Where it was measured."""
    return (
        f"{machine.device}; driver {machine.driver or '-'}, CUDA {machine.cuda or '-'}, torch {machine.torch}, triton "
        f"{machine.triton}; {machine.cpu}, {machine.cores} cores, load {machine.load}; commit {commit or 'unknown'}"
    )


def as_ms(value: Spread | None) -> str:
    """Median (min-max)."""
    if value is None:
        return "-"
    digits = 4 if value.median_ms < 1 else 3 if value.median_ms < 100 else 0
    return f"{value.median_ms:.{digits}f} ({value.min_ms:.{digits}f}-{value.max_ms:.{digits}f})"


def as_json(result: Any) -> str:
    """A dataclass as one JSON object, without NaN or infinity."""
    return json.dumps(_finite(asdict(result)), allow_nan=False)


def write_json(path: Path, result: Any) -> None:
    """Whole or not at all; what stood there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(as_json(result) + "\n", encoding="utf-8")
    fresh.replace(path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and value - value != 0 else value


def _number(cell: str) -> bool:
    return cell == "-" or cell[:1].isdigit() or cell[:2].lstrip("-")[:1].isdigit()

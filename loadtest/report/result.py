"""What every benchmark hands over: JSON that a kill cannot tear, bars that are met or not, and figures as text.

Nothing here needs more than the standard library.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.report.finite import finite
from loadtest.report.machine import Machine
from loadtest.report.table import Table
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


def bar_table(bars: Sequence[Bar]) -> Table:
    """Every bar, what was measured, and whether that meets it."""
    rows = [(bar.name, bar.asked, bar.measured, bar.verdict, bar.by) for bar in bars]
    return Table("Bars", ("figure", "bar", "measured", "holds", "read off"), rows)


def headline(machine: Machine, commit: str | None) -> str:
    """Where it was measured: the device, if there is one, then the CPU."""
    device = f"{machine.device}; driver {machine.driver or '-'}, CUDA {machine.cuda or '-'}, triton {machine.triton}; "
    return (
        f"{device if machine.device else ''}{machine.cpu}, {machine.cores} cores ({machine.instruction_set}), load "
        f"{machine.load}; torch {machine.torch}, {machine.threads} threads; commit {commit or 'unknown'}"
    )


def as_ms(value: Spread | None) -> str:
    """Median (min-max)."""
    if value is None:
        return "-"
    digits = 4 if value.median_ms < 1 else 2 if value.median_ms < 100 else 0
    once = " once" if value.num_samples == 1 else f" ({value.min_ms:,.{digits}f}-{value.max_ms:,.{digits}f})"
    return f"{value.median_ms:,.{digits}f}{once}"


def as_number(value: float | None) -> str:
    """Milliseconds or a count, as far as its digits matter."""
    return "-" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def as_json(result: Any) -> str:
    """A dataclass as one JSON object, without NaN or infinity."""
    return json.dumps(finite(asdict(result)), allow_nan=False)


def write_json(path: Path, result: Any) -> None:
    """Whole or not at all; what stood there is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(as_json(result) + "\n", encoding="utf-8")
    fresh.replace(path)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)

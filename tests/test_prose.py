"""Documents are read in a terminal too: no line is longer than 120 columns, but for the rows of tables."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("client/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")}
)


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_lines_fit(path: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")]
    assert not long

"""Pages of results: prose within the columns of the documents, tables and code as they are."""

from loadtest.report.table import Table, as_markdown


def test_prose_is_filled_and_nothing_else() -> None:
    words = " ".join(["word"] * 60)
    code, row = f"    mfalcon {words}", f"| {words} |"
    text = as_markdown([f"{words}\n- {words}\n{code}\n{row}", Table("", ("a",), [(words,)])])
    lines = text.split("\n")
    assert code in lines and row in lines and f"| {words} |" in lines
    prose = [line for line in lines if not line.startswith(("|", "    "))]
    assert all(len(line) <= 120 for line in prose) and sum(line.startswith("- ") for line in prose) == 1
    assert sum(line.split().count("word") for line in prose) == 120
    assert as_markdown(["short\nlines"]) == "short\nlines"

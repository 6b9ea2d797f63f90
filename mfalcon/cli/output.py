"""How commands print: tables for people, exactly one JSON object for programs."""

import sys
from typing import Annotated

import orjson
import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


def print_json(content: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.buffer.write(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    sys.stdout.flush()

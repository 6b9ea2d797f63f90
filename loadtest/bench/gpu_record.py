"""What a run on a device has found, a JSON object a line, written as it is found: whatever ends the run, that stays."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.report.result import finite

MACHINE, CEILINGS, LAW, CELL, TUNED, STEP = "machine", "ceilings", "law", "cell", "tuned", "step"
PREWARMED, REHEARSED = "prewarmed", "rehearsed"
"""Kinds of lines."""


@dataclass(frozen=True, slots=True)
class Record:
    """Appends the lines of one step to the file of a run."""

    path: Path
    step: str

    def add(self, kind: str, found: Any) -> None:
        """A dataclass or a mapping; on the disk when this returns."""
        fields = found if isinstance(found, dict) else asdict(found)
        line = json.dumps(finite({"step": self.step, "kind": kind, **fields}), allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind; one that was cut short by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields["kind"] == kind:
            found.append(fields)
    return found

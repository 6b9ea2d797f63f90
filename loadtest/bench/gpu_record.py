"""What a run on a device has found, a JSON object a line, written as it is found: whatever ends the run, that stays."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from loadtest.report.finite import finite

MACHINE, CEILINGS, LAW, CELL, TUNED, STEP = "machine", "ceilings", "law", "cell", "tuned", "step"
PREWARMED, REHEARSED, BEGUN, AGAIN, LOST = "prewarmed", "rehearsed", "begun", "again", "lost"
"""Kinds of lines."""


@dataclass(frozen=True, slots=True)
class Record:
    """Appends the lines of one step to the file of a run."""

    path: Path
    step: str

    def add(self, kind: str, found: Any) -> None:
        """A dataclass or a mapping; on the disk when this returns, or printed where the disk has no room for it."""
        fields = found if isinstance(found, dict) else asdict(found)
        line = json.dumps(finite({"step": self.step, "kind": kind, **fields}), allow_nan=False)
        try:
            with self.path.open("ab+") as file:
                # A line that was cut short, by a kill or a full disk, must not take this one with it.
                whole = file.tell() == 0 or (file.seek(-1, os.SEEK_END) >= 0 and file.read(1) == b"\n")
                file.write(f"{'' if whole else chr(10)}{line}\n".encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                print(f"NOT WRITTEN ({error.strerror}): {line}", flush=True)

    def predict(self, seconds: float, launches: int = 0, specialisations: int = 0, wrong: Sequence[str] = ()) -> None:
        """What a rehearsal says of a step on a device. wrong: what a device would refuse."""
        counted = {"launches": launches, "specialisations": specialisations, "predicted_s": seconds}
        self.add(REHEARSED, {**counted, "wrong": list(wrong)})


class Turns:
    """The items of a step, in turn. Each is in the record before it is begun, so that a process that begins the step
    again leaves out what is done, and what the record says to be lost; what it says to be done again is.

    wait: until the device is idle; it raises what went wrong there. An error of the device stays for as long as the
    process lives, so the process ends then.
    """

    DEVICE_LOST: ClassVar = 75
    """Exit code of a process whose device takes no more work."""

    def __init__(self, record: Record, wait: Callable[[], object] = lambda: None) -> None:
        self._record, self._wait = record, wait
        begun, again, self._lost = (
            [line["item"] for line in read(record.path, kind) if line["step"] == record.step]
            for kind in (BEGUN, AGAIN, LOST)
        )
        self._done = {item for item in begun if begun.count(item) > again.count(item)}

    def begin(self, item: str, *, needed: bool = False) -> bool:
        """Whether to do it. needed: by items behind it, so it is done again unless it was what ended the process."""
        try:
            self._wait()
        except Exception as error:  # noqa: BLE001 (whatever it is, the next process may do better)
            print(f"before {item}: the device is lost: {type(error).__name__}: {error}", flush=True)
            sys.exit(self.DEVICE_LOST)
        if item in self._lost or (item in self._done and not needed):
            return False
        self._record.add(BEGUN, {"item": item})
        return True


def read(path: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind; one that was cut short by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields["kind"] == kind:
            found.append(fields)
    return found

"""A start of the server on each kind of bad checkpoint: refused in bounded time, or something is wrong."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest.faults.bad_checkpoints import KINDS, UNSOUND
from loadtest.faults.server_process import REFUSED, START_S, ServerProcess
from loadtest.faults.server_scene import saved_checkpoint
from loadtest.faults.server_table import ServerRow

NAME = "bad checkpoints"
DAMAGES = [*(damage for damage, _, _ in KINDS), *(damage for damage, _ in UNSOUND)]
_POLL_S = 0.05
_DECADES = ("1980s", "1990s")
"""What may be damaged of a side feature."""


def damaged(damage: Callable[[Path], None], directory: Path) -> Path:
    """A checkpoint in this directory that has such a damage."""
    path, _ = saved_checkpoint(directory, decades=_DECADES)
    damage(path)
    return path


def measure(number: int | None = None) -> ServerRow:
    """Start on so many of them, on all if that is None."""
    damages = DAMAGES[:number]
    outcomes, complaints, longest_s, codes = Counter[str](), [], 0.0, set[int | None]()
    for damage in damages:
        with TemporaryDirectory(prefix="mfalcon-fault-") as directory:
            path = damaged(damage, Path(directory))
            server = ServerProcess(path, Path(directory), ("--threads", "1"))
            began = time.monotonic()
            outcome, code = _start(server), server.exit_code
            longest_s = max(longest_s, time.monotonic() - began)
            server.kill()
            outcomes[outcome] += 1
            codes.add(code)
            if outcome != REFUSED or code != 1 or "Traceback" in server.written:
                complaints.append(f"{damage.__name__}: {outcome}, exit code {code}: {server.written[-300:]}")
    return ServerRow(
        NAME,
        f"{len(damages)} kinds of damage",
        requests=dict(outcomes),
        right=0,
        refused=0,
        failed=0,
        silence_s=0.0,
        livez="-",
        readyz="-",
        grpc="-",
        exit_code=codes.pop() if len(codes) == 1 else None,
        known_s=longest_s,
        notes=("the longest time, with the start of the process",),
        complaints=tuple(complaints),
    )


def _start(server: ServerProcess) -> str:
    """What comes of it, and leave it as it is."""
    server.start()
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        if server.exit_code is not None:
            return REFUSED
        if server.asked("/readyz") == "200":
            return "READY"
        time.sleep(_POLL_S)
    return "neither ready nor ended"

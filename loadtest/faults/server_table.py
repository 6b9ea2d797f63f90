"""Measures one fault of the server after the other: a row of what became of each, and what must not be."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest.faults.bystanders import REFUSALS, RIGHT
from loadtest.faults.server_scene import BOUNDS, Effort, ServerFault, saved_checkpoint, scene


@dataclass(frozen=True, slots=True)
class ServerRow:
    """requests: outcomes of the victim's. right, refused, failed: a neighbour's ranks. silence_s: the longest time
    that it had no scores. livez, readyz, grpc: health answers, in their order. known_s: until there was a sign.
    """

    fault: str
    how: str
    requests: dict[str, int]
    right: int
    refused: int
    failed: int
    silence_s: float
    livez: str
    readyz: str
    grpc: str
    exit_code: int | None
    known_s: float | None
    notes: tuple[str, ...]
    complaints: tuple[str, ...]


def measure(fault: ServerFault, effort: Effort) -> ServerRow:
    """Do one fault to a server of its own. Raises EngineFailure where it is neither ready afterwards nor ended."""
    with TemporaryDirectory(prefix="mfalcon-fault-") as directory:
        path, served = saved_checkpoint(Path(directory), fault.dtype, fault.value_scale)
        with scene(fault, path, served, effort) as at:
            fault.act(at)
            at.exit_code = at.server.exit_code if at.exit_code is None else at.exit_code
            if at.exit_code is None:
                at.server.wait_ready()
            changed = at.health.changed_after(at.began)
        written = at.server.written
    bound = BOUNDS[fault.dtype]
    requests, others = at.seen.judged(served, bound), at.neighbour.seen.judged(served, bound)
    refused = sum(others[name] for name in REFUSALS)
    told = None if at.known is None else at.known - at.began
    return ServerRow(
        fault.name,
        fault.how,
        requests=dict(requests),
        right=others[RIGHT],
        refused=refused,
        failed=others.total() - others[RIGHT] - refused,
        silence_s=at.neighbour.silence_s,
        livez=at.health.said("/livez"),
        readyz=at.health.said("/readyz"),
        grpc=at.health.said("grpc"),
        exit_code=at.exit_code,
        known_s=min((seconds for seconds in (told, changed) if seconds is not None), default=None),
        notes=tuple(at.notes),
        complaints=tuple(_complaints(fault, requests, others, at.exit_code, written)),
    )


def _complaints(
    fault: ServerFault,
    requests: Counter[str],
    others: Counter[str],
    exit_code: int | None,
    written: str,
) -> Iterator[str]:
    for name, count in requests.items():
        if name not in fault.allowed:
            yield f"{count} of {requests.total()} requests were answered {name}"
    for name, count in others.items():
        if name != RIGHT and not (fault.refuses and name in REFUSALS):
            yield f"{count} of {others.total()} requests of others were answered {name}"
    if exit_code not in fault.exit_codes:
        yield f"the exit code was {exit_code}, must be of {fault.exit_codes}: {written[-300:]}"

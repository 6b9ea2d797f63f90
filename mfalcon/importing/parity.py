"""What a model scores beside what its trainer did: requests and expected scores in a file of JSON lines.

docs/importing.md has the format, and the script that writes it from a trainer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationError

from mfalcon.errors import DataError
from mfalcon.importing.dlrm_v3 import Imported
from mfalcon.models.base import EventTokens, Targets, context_codes
from mfalcon.models.config_kinds import Frozen
from mfalcon.models.dlrm_v3 import DlrmReader, Lengths

_MOST_LINE_BYTES = 64 << 20
_MICROBATCH = 256
_SECOND_MS = 1_000

_Line = TypeVar("_Line", bound=Frozen)
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Seconds = Annotated[int, Field(ge=0, lt=1 << 40)]


class ParityRequest(Frozen):
    """A line: a request in the trainer's own terms, and the scores that the trainer gave."""

    items: tuple[Count, ...]
    """Of the events, oldest first: rows of the trainer's table."""
    actions: tuple[Count, ...]
    """Bitmask of each event, in the trainer's action weights."""
    times_s: tuple[Seconds, ...]
    context: dict[str, Count] = Field(default_factory=dict)
    candidates: tuple[Count, ...] = Field(min_length=1)
    time_s: Seconds
    """Query time, the same of all candidates."""
    padded_len: int = Field(gt=0, lt=1 << 30)
    """Longest sequence of the batch that it was scored in: user's features, events and candidates."""
    scores: dict[str, tuple[float, ...]] = Field(min_length=1)
    """Of each task, one a candidate."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Worst and mean absolute difference to a trainer's scores: with the trainer's own lengths, which says whether the
    import is right, and with those that are served, which says what the constants cost.
    """

    num_requests: int
    num_scores: int
    worst: float
    mean: float
    served_worst: float
    served_mean: float


def lines_of(path: Path, kind: type[_Line]) -> Iterator[tuple[int, _Line]]:
    """JSON lines of a kind, with their numbers. Raises DataError naming the line."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE_BYTES + 1), b""), 1):
                if len(line) > _MOST_LINE_BYTES:
                    raise DataError(f"{path}:{number}: a line must have at most {_MOST_LINE_BYTES} bytes")
                if line.strip():
                    yield number, _line(path, number, line, kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _line(path: Path, number: int, line: bytes, kind: type[_Line]) -> _Line:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


def read_requests(path: Path) -> Iterator[ParityRequest]:
    """Raises DataError naming the line."""
    for number, one in lines_of(path, ParityRequest):
        _check_line(path, number, one)
        yield one


def _check_line(path: Path, number: int, one: ParityRequest) -> None:
    if not len(one.items) == len(one.actions) == len(one.times_s):
        lengths = f"{len(one.items)}, {len(one.actions)} and {len(one.times_s)}"
        raise DataError(f"{path}:{number}: {lengths} items, actions and times_s, must be as many of each")
    if bad := [task for task, scores in one.scores.items() if len(scores) != len(one.candidates)]:
        raise DataError(
            f"{path}:{number}: scores of {bad[0]!r} must be one for each of {len(one.candidates)} candidates"
        )


def parity(found: Imported, path: Path) -> Parity:
    """Score every request of a file as its trainer did, and as a server does. Raises DataError."""
    own, served = list[np.ndarray](), list[np.ndarray]()
    tasks = [task.name for task in found.model.config.tasks]
    num = 0
    for one in checked_requests(found, path):
        num += 1
        expected = np.array([one.scores[task] for task in tasks if task in one.scores]).T
        columns = [index for index, task in enumerate(tasks) if task in one.scores]
        for lengths, gaps in ((Lengths(one.padded_len, len(one.candidates)), own), (found.model.lengths, served)):
            gaps.append(np.abs(scores_of(found, one, lengths)[:, columns] - expected).ravel())
    if not num:
        raise DataError(f"{path}: has no request")
    exact, pinned = np.concatenate(own), np.concatenate(served)
    return Parity(num, len(exact), float(exact.max()), float(exact.mean()), float(pinned.max()), float(pinned.mean()))


def checked_requests(found: Imported, path: Path) -> Iterator[ParityRequest]:
    """Those of a file that the model can be asked. Raises DataError."""
    tasks = [task.name for task in found.model.config.tasks]
    for number, one in enumerate(read_requests(path), 1):
        _check(found, path, number, one, tasks)
        yield one


def _check(found: Imported, path: Path, number: int, one: ParityRequest, tasks: list[str]) -> None:
    config = found.model.config
    if strange := sorted(one.scores.keys() - set(tasks)):
        raise DataError(f"{path}: request {number}: scores of {strange[0]!r}, the tasks are {tasks}")
    sizes = {feature.name: feature.num_values for feature in config.context_features}
    for name, code in one.context.items():
        if code >= sizes.get(name, 0):
            raise DataError(f"{path}: request {number}: context {name} is {code}, must be one of {sizes}")
    for row in (*one.items, *one.candidates):
        if row >= config.num_items - 1:
            raise DataError(f"{path}: request {number}: item {row}, must be below {config.num_items - 1}")


def asked_of(found: Imported, one: ParityRequest) -> tuple[EventTokens, Targets, int]:
    """The newest events of a request, its candidates and its time in milliseconds, as an imported model reads them."""
    config = found.model.config
    masks = np.array(one.actions, dtype=np.int64)
    actions = np.zeros_like(masks)
    for place, bit in enumerate(found.action_bits):
        actions |= ((masks & bit) != 0).astype(np.int64) << place
    newest = slice(max(0, len(masks) - config.max_history), None)
    columns = (
        np.array(one.items, dtype=np.int64) + 1,
        actions,
        np.zeros(len(masks)),
        np.array(one.times_s, dtype=np.int64) * _SECOND_MS,
    )
    events = EventTokens(*(torch.from_numpy(column[newest]) for column in columns))
    now_ms = one.time_s * _SECOND_MS
    context = torch.from_numpy(context_codes(config.context_features, one.context, now_ms))
    return events, Targets(torch.tensor(one.candidates) + 1, context), now_ms


def scores_of(found: Imported, one: ParityRequest, lengths: Lengths) -> np.ndarray:
    """Of an imported model, with a trainer's lengths or its own: [num_candidates, num_tasks]."""
    events, targets, now_ms = asked_of(found, one)
    with torch.inference_mode():
        reader = DlrmReader(found.model, lengths)
        raw = reader.raw(reader.read(events, targets.context, now_ms), targets, _MICROBATCH)
        scores: np.ndarray = found.model.scores(raw).double().numpy()
    return scores

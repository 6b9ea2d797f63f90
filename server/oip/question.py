"""What is asked by tensors, as a `RankRequest`: the same fields by the same names, so that one page explains both.

| tensor | datatype, shape | field of Rank |
|---|---|---|
| user_id | BYTES [1] | user_id |
| candidate_ids | INT64 or BYTES [m] | candidates, candidate_ids |
| request_time_ms | INT64 [1] | request_time_ms |
| recent_item_ids, recent_times_ms | INT64 (ids: or BYTES) [n] | recent_events |
| recent_actions, recent_values | UINT32, FP32 [n] | recent_events; 0 where they are not given |
| context.NAME | INT64 [1] | context |
| features.NAME | FP32 [m] | features |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.text_ids import TextIds
from mfalcon.types import EVENT_DTYPE, DenseFeatures, Events, Ids, RankRequest, no_events
from server.limits import MAX_CONTEXT_ENTRIES, MAX_DENSE_FEATURES, MAX_TIMEOUT_MS, Limits
from server.oip.tensors import Tensor, floats, integers, item_ids, numbers, texts

CONTEXT: Final = "context."
FEATURES: Final = "features."
NAMED: Final = (
    "user_id",
    "candidate_ids",
    "request_time_ms",
    "recent_item_ids",
    "recent_times_ms",
    "recent_actions",
    "recent_values",
)
MAX_INPUTS: Final = len(NAMED) + MAX_CONTEXT_ENTRIES + MAX_DENSE_FEATURES
MAX_OUTPUTS: Final = 1_024
MAX_PARAMETERS: Final = 64
"""Of a request, of all its inputs together, and of all its outputs."""
MAX_NAME_CHARS: Final = 256
MAX_ID_CHARS: Final = 1_024
"""Names are part of what is said of a tensor, and an id of the answer: neither may be megabytes."""
WISHES: Final = ("allow_partial", "recompute", "exclude_unknown", "exclude_seen")
"""Parameters that are true or false, as in a RankRequest."""
PARAMETERS: Final = ("timeout", "top_k", *WISHES)
MAX_TIMEOUT_US: Final = 1_000 * MAX_TIMEOUT_MS

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Question:
    """A ModelInferRequest of either transport. id: which is given back. outputs: names of those that are wanted, none
    for all.
    """

    model: str
    version: str
    id: str
    parameters: Mapping[str, Parameter]
    inputs: Sequence[Tensor]
    outputs: Sequence[str]


def check_head(question: Question) -> None:
    """An id that is fit to be given back, and known parameters of the right kinds. Raises InvalidInput."""
    if len(question.id) > MAX_ID_CHARS:
        raise InvalidInput("id", len(question.id), f"at most {MAX_ID_CHARS} characters")
    for name, value in question.parameters.items():
        field = f"parameters.{name[:80]}"
        if name not in PARAMETERS:
            raise InvalidInput(field, value, f"absent: there are {', '.join(PARAMETERS)}")
        if name in WISHES and not isinstance(value, bool):
            raise InvalidInput(field, value, "true or false")
        most = {"timeout": MAX_TIMEOUT_US, "top_k": 2**32 - 1}.get(name)
        if most is None:
            continue
        least = 1 if name == "timeout" else 0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise InvalidInput(field, value, f"{least} to {most}{' (microseconds)' if name == 'timeout' else ''}")


def time_left_of(question: Question, time_left: float | None) -> float | None:
    """Seconds that a caller grants: by the parameter, or by the transport if that is sooner."""
    timeout = question.parameters.get("timeout")
    if timeout is None:
        return time_left
    seconds = float(timeout) / 1e6
    return seconds if time_left is None else min(seconds, time_left)


def rank_request(question: Question, limits: Limits, text_ids: TextIds) -> RankRequest:
    """The request, whose parameters are checked, and of whose tensors the names, datatypes and counts are checked here.
    Raises InvalidInput.
    """
    given = _by_name(question.inputs)
    user_id = _one_text(_needed(given, "user_id"))
    candidates = item_ids(_needed(given, "candidate_ids"), limits.max_candidates, text_ids)
    time_ms = given.get("request_time_ms")
    allow_partial, recompute, exclude_unknown, exclude_seen = (question.parameters.get(name) is True for name in WISHES)
    return RankRequest(
        user_id=user_id,
        candidates=candidates,
        top_k=int(question.parameters.get("top_k", 0)),
        request_time_ms=0 if time_ms is None else _one_number(time_ms),
        recent_events=_recent(given, limits, text_ids),
        context={
            name.removeprefix(CONTEXT): _one_number(tensor)
            for name, tensor in given.items()
            if name.startswith(CONTEXT)
        },
        dense=_dense(given, len(candidates), limits),
        allow_partial=allow_partial,
        recompute=recompute,
        exclude_unknown=exclude_unknown,
        exclude_seen=exclude_seen,
    )


def _by_name(tensors: Sequence[Tensor]) -> Mapping[str, Tensor]:
    given: dict[str, Tensor] = {}
    for at, tensor in enumerate(tensors):
        name = tensor.name
        if len(name) > MAX_NAME_CHARS:
            raise InvalidInput(f"inputs[{at}].name", len(name), f"at most {MAX_NAME_CHARS} characters")
        if name not in NAMED and not name.startswith((CONTEXT, FEATURES)):
            known = f"{', '.join(NAMED)}, {CONTEXT}NAME or {FEATURES}NAME"
            raise InvalidInput(f"inputs[{at}].name", name, known)
        if name in given:
            raise InvalidInput(f"inputs[{at}].name", name, "a name that is given once")
        given[name] = tensor
    return given


def _needed(given: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in given:
        raise InvalidInput(f"inputs.{name}", None, "given")
    return given[name]


def _one_text(tensor: Tensor) -> str:
    found = texts(tensor, 1)
    if not found:
        raise InvalidInput(f"inputs.{tensor.name}.shape", [0], "[1]")
    return found[0]


def _one_number(tensor: Tensor) -> int:
    found = integers(tensor, 1)
    if not len(found):
        raise InvalidInput(f"inputs.{tensor.name}.shape", [0], "[1]")
    return int(found[0])


def _recent(given: Mapping[str, Tensor], limits: Limits, text_ids: TextIds) -> Events:
    columns = [name for name in NAMED if name.startswith("recent_") and name in given]
    if not columns:
        return no_events()
    most = limits.max_recent_events
    items: Ids = item_ids(_needed(given, "recent_item_ids"), most, text_ids)
    events = np.zeros(len(items), dtype=EVENT_DTYPE)
    events["item_id"] = items
    for name, column, datatype in (
        ("recent_times_ms", "time_ms", "INT64"),
        ("recent_actions", "actions", "UINT32"),
        ("recent_values", "value", "FP32"),
    ):
        if name == "recent_times_ms" or name in given:
            found = numbers(_needed(given, name), datatype, most)
            if len(found) != len(items):
                raise InvalidInput(f"inputs.{name}.shape", [len(found)], f"[{len(items)}], as of recent_item_ids")
            events[column] = found
    return events


def _dense(given: Mapping[str, Tensor], num_candidates: int, limits: Limits) -> DenseFeatures:
    names = [name for name in given if name.startswith(FEATURES)]
    if not names:
        return DenseFeatures()
    columns = [floats(given[name], limits.max_candidates) for name in names]
    for name, column in zip(names, columns, strict=True):
        if len(column) != num_candidates:
            raise InvalidInput(f"inputs.{name}.shape", [len(column)], f"[{num_candidates}], as of candidate_ids")
    values = np.stack(columns, axis=1).ravel()
    return DenseFeatures(tuple(name.removeprefix(FEATURES) for name in names), values)

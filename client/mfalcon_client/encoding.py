"""Arrays to the bytes of a request.

A message is the concatenation of its fields in any order, so candidates and events are written here as the bytes that
they are, behind the rest that protobuf writes: it takes a Python object for each of them. Raises InvalidArgument for
what cannot be sent; what can be is for the server to judge.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from operator import index
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from mfalcon_client import messages as pb
from mfalcon_client.errors import InvalidArgument
from mfalcon_client.item_ids import checked_item_id
from mfalcon_client.types import (
    EVENT_DTYPE,
    Events,
    Features,
    Ids,
    Rerank,
    Retrieve,
)

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types: the last three bits of a tag."""
_MAX_INT64 = 2**63 - 1

_WIRE_EVENT = np.dtype(
    [("tag", "u1"), ("len", "u1")]
    + [part for name in EVENT_DTYPE.names or () for part in ((f"{name}_tag", "u1"), (name, EVENT_DTYPE[name]))]
)
"""An event in a repeated field: each value has a fixed size behind a tag of one byte."""
_EVENT_TAGS = {
    "item_id": pb.Event.ITEM_ID_FIELD_NUMBER << 3 | _FIXED64,
    "actions": pb.Event.ACTIONS_FIELD_NUMBER << 3 | _FIXED32,
    "value": pb.Event.VALUE_FIELD_NUMBER << 3 | _FIXED32,
    "time_ms": pb.Event.TIME_MS_FIELD_NUMBER << 3 | _FIXED64,
}


def user(user_id: str) -> bytes:
    """The field of the user, which has the same number in every request, and is a whole DeleteUserRequest."""
    if not isinstance(user_id, str):
        raise _wrong("user_id", type(user_id).__name__, "a string")
    try:
        return pb.DeleteUserRequest(user_id=user_id).SerializeToString()
    except ValueError as error:  # UnicodeEncodeError is one
        raise _wrong("user_id", ascii(user_id)[:80], "text that UTF-8 can encode") from error


def rank_options(
    candidates: Ids,
    *,
    top_k: int = 0,
    request_time_ms: int = 0,
    recent_events: Events = (),
    context: Mapping[str, int] = MappingProxyType({}),
    features: Features = MappingProxyType({}),
    model: str = "",
    allow_partial: bool = False,
    rerank: Rerank | None = None,
    recompute: bool = False,
    retrieve: Retrieve | None = None,
    returns: str = "both",
    exclude_unknown: bool = False,
    exclude_seen: bool = False,
) -> bytes:
    """A serialized RankRequest but for its user."""
    try:
        message = pb.RankRequest(
            exclude_unknown=exclude_unknown,
            exclude_seen=exclude_seen,
            top_k=top_k,
            request_time_ms=request_time_ms,
            context=dict(context),
            model=model,
            allow_partial=allow_partial,
            recompute=recompute,
            rerank=None if rerank is None else pb.Rerank(**dataclasses.asdict(rerank)),
            retrieve=None if retrieve is None else pb.Retrieve(**dataclasses.asdict(retrieve)),
        )
        setattr(message, "return", "" if returns == "both" else returns)  # a keyword
        rest = message.SerializeToString()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            "INVALID_ARGUMENT", f"top_k, request_time_ms, context, model, rerank, retrieve or returns: {error}"
        ) from error
    ids = _candidates(candidates)
    return b"".join(
        (
            rest,
            _field(pb.RankRequest.CANDIDATES_FIELD_NUMBER, _BYTES) + _varint(len(ids)),
            ids,
            _events("recent_events", recent_events, pb.RankRequest.RECENT_EVENTS_FIELD_NUMBER),
            _features(features, len(candidates)),
        )
    )


def interests_options(
    conditions: Sequence[str], *, top_items: int, request_time_ms: int, recent_events: Events, model: str
) -> bytes:
    """A serialized InterestsRequest but for its user."""
    try:
        rest = pb.InterestsRequest(
            conditions=conditions, top_items=top_items, request_time_ms=request_time_ms, model=model
        ).SerializeToString()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            "INVALID_ARGUMENT", f"conditions, top_items, request_time_ms or model: {error}"
        ) from error
    return rest + _events("recent_events", recent_events, pb.InterestsRequest.RECENT_EVENTS_FIELD_NUMBER)


def append_options(
    events: Events,
    expected_len: int | None,
    expected_version: bytes | None = None,
    append_id: str = "",
    late_events: str = "",
) -> bytes:
    """A serialized AppendEventsRequest but for its user."""
    try:
        rest = pb.AppendEventsRequest(
            expected_len=expected_len,
            expected_version=expected_version,
            append_id=append_id,
            late_events=late_events,
        ).SerializeToString()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            "INVALID_ARGUMENT", f"expected_len, expected_version, append_id or late_events: {error}"
        ) from error
    return rest + _events("events", events, pb.AppendEventsRequest.EVENTS_FIELD_NUMBER)


def batch(parts: Sequence[bytes]) -> bytes:
    """A serialized AppendBatchRequest or RankBatchRequest of its serialized requests: both have them in field 1."""
    tag = bytes([pb.AppendBatchRequest.APPENDS_FIELD_NUMBER << 3 | _BYTES])
    return b"".join(part for each in parts for part in (tag, _varint(len(each)), each))


def history_options(first: int, limit: int, expected_version: bytes | None, *, with_states: bool) -> bytes:
    """A serialized GetHistoryRequest but for its user."""
    try:
        return pb.GetHistoryRequest(
            first=first, limit=limit, expected_version=expected_version, with_states=with_states
        ).SerializeToString()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"first, limit, expected_version or with_states: {error}") from error


def model_name(model: str) -> bytes:
    """A serialized GetModelRequest."""
    try:
        return pb.GetModelRequest(model=model).SerializeToString()
    except (TypeError, ValueError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"model: {error}") from error


def prefill_options(model: str, conditions: Sequence[str] = (), request_time_ms: int = 0) -> bytes:
    """A serialized PrefillRequest but for its user."""
    try:
        return pb.PrefillRequest(
            model=model, conditions=conditions, request_time_ms=request_time_ms
        ).SerializeToString()
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"model, conditions or request_time_ms: {error}") from error


def _candidates(candidates: Ids) -> bytes:
    try:
        if not isinstance(candidates, np.ndarray) and str in set(map(type, candidates)):
            return _numbers(candidates).tobytes()
        array = np.asarray(candidates)
    except (ValueError, OverflowError, TypeError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"candidates: {error}") from error
    _check_all_there("candidates", candidates)
    if array.ndim != 1:
        raise _wrong("candidates", f"{array.ndim} dimensions", "one-dimensional")
    if not array.size:
        return b""
    if array.dtype.kind == "U":
        return _numbers(candidates).tobytes()
    if array.dtype.kind not in "iu":
        raise _wrong("candidates", f"dtype {array.dtype}", "integers of 64 bits with a sign, or texts")
    if array.dtype.kind == "u" and array.max() > _MAX_INT64:
        raise _wrong("candidates", str(array.max()), f"at most {_MAX_INT64}")
    return array.astype("<i8").tobytes()


def _numbers(texts: Ids) -> NDArray[np.int64]:
    """Of ids of which some are text."""
    numbers = np.empty(len(texts), dtype="<i8")
    for at, text in enumerate(texts):
        try:
            numbers[at] = _item_number(text)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument("INVALID_ARGUMENT", f"candidates[{at}]: {error}") from error
    return numbers


def _item_number(item_id: object) -> int:
    """Of an id, a number or text. Raises ValueError and TypeError."""
    return checked_item_id(item_id) if isinstance(item_id, str) else index(item_id)  # type: ignore[arg-type]


def _features(features: Features, num_candidates: int) -> bytes:
    """Columns of numbers as the field of a RankRequest: its values lie candidate by candidate."""
    if not features:
        return b""
    columns = []
    for name, column in features.items():
        what = f"features[{name!r}]"
        try:
            array = np.asarray(column)
        except (ValueError, OverflowError, TypeError) as error:
            raise InvalidArgument("INVALID_ARGUMENT", f"{what}: {error}") from error
        _check_all_there(what, column)
        if array.shape != (num_candidates,):
            raise _wrong(what, f"shape {array.shape}", f"({num_candidates},): a number of each candidate")
        if array.dtype.kind not in "iufb":
            raise _wrong(what, f"dtype {array.dtype}", "numbers")
        with np.errstate(over="ignore"):  # infinity is for the server to refuse
            columns.append(array.astype("<f4"))
    try:
        names = pb.DenseFeatures(names=list(features)).SerializeToString()
    except (TypeError, ValueError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"features: {error}") from error
    values = np.stack(columns, axis=1).tobytes()
    packed = _field(pb.DenseFeatures.VALUES_FIELD_NUMBER, _BYTES) + _varint(len(values)) + values
    return _field(pb.RankRequest.FEATURES_FIELD_NUMBER, _BYTES) + _varint(len(names) + len(packed)) + names + packed


def _events(name: str, events: Events, field_number: int) -> bytes:
    """Events as a repeated field of this number."""
    array = _event_array(name, events)
    if not len(array):  # most ranks have none, and an empty array takes as long as a short one
        return b""
    wire = np.empty(len(array), dtype=_WIRE_EVENT)
    wire["tag"], wire["len"] = field_number << 3 | _BYTES, _WIRE_EVENT.itemsize - 2
    for part, tag in _EVENT_TAGS.items():
        wire[f"{part}_tag"], wire[part] = tag, array[part]
    return wire.tobytes()


def _event_array(name: str, events: Events) -> NDArray[np.void]:
    if isinstance(events, np.ndarray):
        if events.dtype != EVENT_DTYPE:
            raise _wrong(name, f"dtype {events.dtype}", "of EVENT_DTYPE")
        _check_all_there(name, events)
        if events.ndim != 1:
            raise _wrong(name, f"{events.ndim} dimensions", "one-dimensional")
        return events
    if not isinstance(events, Sized):
        raise _wrong(name, type(events).__name__, "an array or a sequence of events")
    try:
        rows = [(_item_number(e.item_id), index(e.actions), float(e.value), index(e.time_ms)) for e in events]
        with np.errstate(over="ignore"):  # infinity is for the server to refuse
            return np.array(rows, dtype=EVENT_DTYPE)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument("INVALID_ARGUMENT", f"{name}: {error}") from error


def _check_all_there(name: str, array: object) -> None:
    """NumPy would send what a mask hides. An event has a mask for each of its values."""
    if isinstance(array, np.ma.MaskedArray) and any(np.ma.getmaskarray(array).tobytes()):
        raise _wrong(name, "masked values", "without any")


def _field(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    """Base-128, least significant group first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _wrong(field: str, value: str, limit: str) -> InvalidArgument:
    return InvalidArgument("INVALID_ARGUMENT", f"{field}: got {value}, must be {limit}")

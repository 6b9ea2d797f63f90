"""A history that nobody uses, in about half its bytes.

Each field of the events is a row of integers of as few bytes as hold it, counted from its least one. Nothing is
rounded: what comes back is the same to the bit.
"""

import struct
from dataclasses import replace

import numpy as np

from mfalcon.history.chain import LINK_BYTES
from mfalcon.history.history import History, no_history
from mfalcon.types import EVENT_DTYPE, Events

_HEADER = struct.Struct("<8sQIBBBB")
"""Generation, base, number of events, and how each field is held: the width of its numbers in bytes, or `_HALF`."""
_LEAST = struct.Struct("<Q")
_HALF = 16
_FIELDS = (("item_id", "<u8"), ("actions", "<u4"), ("value", "<u4"), ("time_ms", "<u8"))
_MOST = np.uint64(2**64 - 1)


def pack(history: History) -> bytes:
    """The bytes of a history that has a generation of 8 bytes."""
    parts, widths = [], []
    for name, dtype in _FIELDS:
        if name == "value" and (halves := _halves(history.events)) is not None:
            widths.append(_HALF)
            parts.append(halves)
            continue
        numbers = np.ascontiguousarray(history.events[name]).view(dtype).astype("<u8")
        # Negative numbers are great ones here; the difference to the least is right all the same.
        least = numbers.min(initial=_MOST)
        numbers -= least
        width = (int(numbers.max(initial=0)).bit_length() + 7) // 8
        parts += _LEAST.pack(int(least)), numbers.view("u1").reshape(-1, 8)[:, :width].tobytes()
        widths.append(width)
    head = _HEADER.pack(history.generation, history.base, len(history.events), *widths)
    link = history.links[:LINK_BYTES] if history.base else b""
    return b"".join((head, link, *parts))


def unpack(user_id: str, packed: bytes) -> History:
    """The history that was packed."""
    generation, base, num, *widths = _HEADER.unpack_from(packed)
    events, at = np.empty(num, dtype=EVENT_DTYPE), _HEADER.size
    begun = no_history(user_id, generation)
    if base:
        begun, at = replace(begun, base=base, links=packed[at : at + LINK_BYTES]), at + LINK_BYTES
    for (name, dtype), width in zip(_FIELDS, widths, strict=True):
        if width == _HALF:
            events[name] = np.frombuffer(packed, dtype="<f2", count=num, offset=at)
            at += 2 * num
            continue
        (least,), at = _LEAST.unpack_from(packed, at), at + _LEAST.size
        numbers = np.zeros((num, 8), dtype="u1")
        numbers[:, :width] = np.frombuffer(packed, dtype="u1", count=width * num, offset=at).reshape(num, width)
        events[name] = (numbers.view("<u8")[:, 0] + np.uint64(least)).astype(dtype).view(EVENT_DTYPE[name])
        at += width * num
    return begun.extended(events)


def _halves(events: Events) -> bytes | None:
    """The values as 16-bit floats, if that is what they are to the bit."""
    values = np.ascontiguousarray(events["value"])
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2")
    same = halves.astype("<f4").view("<u4") == values.view("<u4")
    return halves.tobytes() if same.all() else None

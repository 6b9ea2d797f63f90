"""A delta as the messages of an UpdateItems call."""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mfalcon.items.delta import Delta
from proto import ranking_pb2

_SENT_BYTES: Final = 1 << 20
_LENGTH_DELIMITED: Final = 2
"""Wire type of a packed field."""
_Request = ranking_pb2.UpdateItemsRequest


def messages(model: str, delta: Delta) -> Iterator[ranking_pb2.UpdateItemsRequest]:
    """What a client sends of a delta, about a mebibyte at a time."""
    columns = [delta.item_id, delta.vector, delta.bias, *delta.side.values()]
    per_row = sum(one[0].nbytes for one in columns if one is not None and len(one)) or 1
    size = max(1, _SENT_BYTES // per_row)
    for first in range(0, max(1, delta.num_rows), size):
        part = slice(first, first + size)
        packed = [_packed(_Request.ITEM_IDS_FIELD_NUMBER, delta.item_id[part], "<i8")]
        for number, column in (
            (_Request.VECTORS_FIELD_NUMBER, delta.vector),
            (_Request.BIASES_FIELD_NUMBER, delta.bias),
        ):
            packed += [] if column is None else [_packed(number, column[part], "<f4")]
        message = _Request.FromString(b"".join(packed))
        if not first:
            message.model, message.model_version = model, delta.checkpoint
            message.number, message.replaces = delta.number, delta.replaces
        message.last = first + size >= delta.num_rows
        for name, codes in delta.side.items():
            message.side[name].values.extend(map(int, codes[part].ravel()))
        yield message


def _packed(number: int, column: NDArray[np.generic], dtype: str) -> bytes:
    """A packed field: a list of Python numbers takes a hundred times as long."""
    raw = np.ascontiguousarray(column).astype(dtype, copy=False).tobytes()
    size, length = len(raw), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | _LENGTH_DELIMITED]) + bytes([*length, size]) + raw

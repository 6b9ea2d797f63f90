"""The messages of an UpdateItems call as one delta."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import InvalidInput, Overloaded
from mfalcon.items.delta import MOST_ROWS, Delta
from mfalcon.types import Floats, Ids
from proto import ranking_pb2
from server.grpc.wire import MessageLimits, Repeated

MOST_MESSAGE_BYTES = 4 << 20
"""gRPC's own default."""
MOST_DELTA_BYTES = 1 << 30
MOST_STREAMS = 4
"""Deltas that may arrive at once: each is held until all of it is here."""
_MOST_SIDE_FEATURES = 256

D = TypeVar("D", bound=np.generic)

_Request = ranking_pb2.UpdateItemsRequest

LIMITS = MessageLimits(
    _Request.DESCRIPTOR.full_name,
    Repeated(
        "item_ids", _Request.ITEM_IDS_FIELD_NUMBER, MOST_ROWS, f"at most {MOST_ROWS} in one delta", is_fixed64=True
    ),
    Repeated("side", _Request.SIDE_FIELD_NUMBER, _MOST_SIDE_FEATURES, f"at most {_MOST_SIDE_FEATURES}"),
    max_bytes=MOST_MESSAGE_BYTES,
)


@dataclass(slots=True)
class DeltaStream:
    """What has come of a delta."""

    model: str = ""
    checkpoint: str = ""
    number: int = 0
    replaces: bool = False
    is_whole: bool = False
    num_messages: int = 0
    num_bytes: int = 0
    ids: list[Ids] = field(default_factory=list)
    vectors: list[Floats] = field(default_factory=list)
    biases: list[Floats] = field(default_factory=list)
    side: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict)

    def add(self, message: ranking_pb2.UpdateItemsRequest, num_bytes: int) -> None:
        """The next message. Raises InvalidInput."""
        if self.is_whole:
            raise InvalidInput("last", f"in message {self.num_messages}, which others follow", "in the last one")
        self.is_whole = message.last
        if not self.num_messages:
            self.model, self.checkpoint = message.model, message.model_version
            self.number, self.replaces = message.number, message.replaces
        self.num_messages += 1
        self.num_bytes += num_bytes
        if self.num_bytes > MOST_DELTA_BYTES:
            raise InvalidInput(
                "delta", f"more than {self.num_bytes >> 20} MiB", f"at most {MOST_DELTA_BYTES >> 20} MiB"
            )
        num = len(message.item_ids)
        if not num and self.num_messages > 1:
            raise InvalidInput("item_ids", f"none in message {self.num_messages}", "one at least in each")
        self.ids.append(np.asarray(message.item_ids, dtype=np.int64))
        for name, numbers, column in (
            ("vectors", message.vectors, self.vectors),
            ("biases", message.biases, self.biases),
        ):
            if len(numbers):
                column.append(_rows(name, np.asarray(numbers, dtype=np.float32), num))
        for name, values in message.side.items():
            column_of = self.side.setdefault(name[:80], [])
            column_of.append(_rows(f"side.{name[:80]}", np.asarray(values.values, dtype=np.int64), num))

    def delta(self) -> Delta:
        """All of it. Raises InvalidInput where messages differ in their columns."""
        if not self.is_whole:  # a call that breaks off looks like one that has ended
            raise InvalidInput(
                "last", f"in none of {self.num_messages} messages", "in the last one: nothing is applied"
            )
        ids = np.concatenate(self.ids)
        side = {name: _joined(f"side.{name}", parts, len(ids)) for name, parts in self.side.items()}
        return Delta(
            self.number,
            self.checkpoint,
            ids,
            _joined("vectors", self.vectors, len(ids)) if self.vectors else None,
            _joined("biases", self.biases, len(ids)) if self.biases else None,
            side,
            self.replaces,
        )


class DeltaStreams:
    """The calls of one server."""

    def __init__(self) -> None:
        self._num_open = 0

    async def read(
        self, receive: Callable[[], Awaitable[tuple[ranking_pb2.UpdateItemsRequest, int] | None]]
    ) -> DeltaStream:
        """All messages of a call, as `receive` gives them, None after the last one. Raises InvalidInput, and Overloaded
        while too many others come in.
        """
        if self._num_open >= MOST_STREAMS:
            raise Overloaded(f"items: {self._num_open} deltas come in already; try again when they are applied")
        self._num_open += 1
        try:
            stream = DeltaStream()
            while (got := await receive()) is not None:
                stream.add(*got)
            return stream
        finally:
            self._num_open -= 1


def _rows(name: str, numbers: NDArray[D], num: int) -> NDArray[D]:
    """[num, width] of a flat column."""
    if not num or len(numbers) % num:
        raise InvalidInput(name, f"{len(numbers)} numbers of {num} items", "as many for each item")
    return numbers.reshape(num, -1)


def _joined(name: str, parts: Sequence[NDArray[D]], num: int) -> NDArray[D]:
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1 or sum(map(len, parts)) != num:
        raise InvalidInput(name, f"of {sum(map(len, parts))} items in widths {sorted(widths)}", f"of all {num}, alike")
    return np.concatenate(parts)

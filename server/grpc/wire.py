"""Counts of a serialized message before protobuf makes objects of it: two million empty events fit into 4 MiB, and are
seconds of work.

The scan reads the outermost tags and lengths alone and ends where a limit is passed, so its cost is bounded by the
limits and not by the message (protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mfalcon.errors import InvalidInput

VARINT, FIXED64, LENGTH_DELIMITED, START_GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types: the last three bits of a tag."""
SIZES: Final = {FIXED64: 8, FIXED32: 4}
MAX_VARINT_BYTES: Final = 10
MAX_OTHER_FIELDS: Final = 256
MAX_OTHERS_OF_AN_ELEMENT: Final = 24
"""Fields that are not repeated: our messages have thirteen at most, and newer clients may know some more. A message
and all in it share so many, and some more for each element of a repeated field that is looked into: if each had its
own, two seconds of work would fit into 4 MiB.
"""


class Malformed(Exception):
    """The bytes are no protobuf message."""


@dataclass(frozen=True, slots=True)
class MoreThan:
    """A number of something that was not counted to its end."""

    number: int

    def __repr__(self) -> str:
        return f"more than {self.number}"


@dataclass(frozen=True, slots=True)
class Repeated:
    """A repeated field, and how many of it are welcome.

    limit: that in words. is_fixed64: its elements are numbers of 8 bytes, packed or not. is_varint: they are numbers of
    1 to 10 bytes; packed they are as few as these bytes may hold, as to count them would cost what a parse does.
    Otherwise they are messages, texts or maps.
    """

    name: str
    number: int
    at_most: int
    limit: str
    is_fixed64: bool = False
    is_varint: bool = False

    def num_packed(self, num_bytes: int) -> int:
        """At least so many elements are in so many bytes of one field."""
        if self.is_fixed64:
            return num_bytes // SIZES[FIXED64]
        return -(-num_bytes // MAX_VARINT_BYTES) if self.is_varint else 1


@dataclass(slots=True)
class _Others:
    """Fields that are not repeated, of a message and all in it."""

    num: int = 0
    at_most: int = MAX_OTHER_FIELDS

    def take(self, name: str) -> None:
        """One more, of a message of this name. Raises InvalidInput."""
        self.num += 1
        if self.num > self.at_most:
            limit = f"at most {self.at_most} single or unknown fields"
            raise InvalidInput(name, MoreThan(self.at_most), limit)


class MessageLimits:
    """What a message may hold: so many of each repeated field, few others, and `max_bytes` in all if given. inner: of
    messages in it, by the number of their field; all messages of one field share these bounds. in_all: those of every
    message that holds some of them do.
    """

    def __init__(
        self,
        name: str,
        *repeated: Repeated,
        max_bytes: int | None = None,
        inner: "Mapping[int, MessageLimits]" = MappingProxyType({}),
        in_all: bool = False,
    ) -> None:
        self.name = name
        self._in_all = in_all
        self._max_bytes = max_bytes
        self._inner = {number << 3 | LENGTH_DELIMITED: limits for number, limits in inner.items()}
        self._of_tag = {field.number << 3 | LENGTH_DELIMITED: field for field in repeated}
        self._of_tag |= {field.number << 3 | FIXED64: field for field in repeated if field.is_fixed64}
        self._of_tag |= {field.number << 3 | VARINT: field for field in repeated if field.is_varint}

    def check(self, raw: bytes) -> None:
        """Raise InvalidInput for more. What is malformed passes: protobuf refuses it."""
        if self._max_bytes is not None and len(raw) > self._max_bytes:
            raise InvalidInput(self.name, len(raw), f"at most {self._max_bytes} bytes")
        try:
            self._scan(raw, self._room(), {}, _Others())
        except (Malformed, IndexError):
            return

    def _room(self) -> dict[int, int]:
        """How many of each repeated field are welcome, by its number."""
        return {field.number: field.at_most for field in self._of_tag.values()}

    def _rooms(self, in_all: "dict[MessageLimits, dict[int, int]]") -> dict[int, dict[int, int]]:
        """The room of the messages in one, by their tag."""
        return {
            tag: in_all.setdefault(inner, inner._room()) if inner._in_all else inner._room()
            for tag, inner in self._inner.items()
        }

    def _scan(
        self, raw: bytes, room: dict[int, int], in_all: "dict[MessageLimits, dict[int, int]]", others: _Others
    ) -> None:
        """in_all: the rooms of those that say so. others: of the whole message."""
        of_tag, rooms = self._of_tag, self._rooms(in_all)
        at, end, depth = 0, len(raw), 0
        while at < end:
            # A byte is the whole varint nearly always: ten thousand calls would cost as much as all the rest.
            tag, at = (raw[at], at + 1) if raw[at] < 0x80 else varint(raw, at)
            wire_type, length = tag & 7, 0
            if wire_type == LENGTH_DELIMITED:
                length, at = (raw[at], at + 1) if raw[at] < 0x80 else varint(raw, at)
            elif wire_type == VARINT:
                _, at = varint(raw, at)
            elif wire_type == START_GROUP:
                depth += 1
            elif wire_type == END_GROUP:
                depth -= 1
            elif wire_type in SIZES:
                length = SIZES[wire_type]
            else:
                raise Malformed
            at += length
            if at > end or depth < 0:
                raise Malformed

            field = None if depth else of_tag.get(tag)
            if not depth and (inner := self._inner.get(tag)) is not None:
                others.at_most += 0 if field is None else MAX_OTHERS_OF_AN_ELEMENT
                inner._scan(raw[at - length : at], rooms[tag], in_all, others)
            num_items = 1 if field is None or wire_type != LENGTH_DELIMITED else field.num_packed(length)
            # A packed field without elements is work too.
            if field is None or num_items == 0:
                others.take(self.name)
                continue
            room[field.number] -= num_items
            if room[field.number] < 0:
                raise InvalidInput(field.name, MoreThan(field.at_most), field.limit)


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it. Malformed or IndexError where there is none."""
    value = 0
    for index in range(MAX_VARINT_BYTES):
        byte = raw[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise Malformed

"""One event as a line of JSON: its fields are those of the wire, its actions may go by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from mfalcon.errors import InvalidInput
from mfalcon.item_ids import checked_item_id
from mfalcon.types import MAX_TIME_MS

FIELDS: Final = ("user_id", "item_id", "time_ms", "actions", "value")
MAX_FLOAT32: Final = float(np.finfo(np.float32).max)
_SHOWN: Final = 80
"""Bytes of a line that are shown."""


class Row(NamedTuple):
    """A user and one event of his, in the order of EVENT_DTYPE."""

    user_id: str
    item_id: int
    actions: int
    value: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class LineReader:
    """Reads lines. actions: the bit of each by its name, as the server's model has them. ignored: fields that may be
    there and are not read.
    """

    actions: Mapping[str, int]
    ignored: frozenset[str] = frozenset()

    def read(self, line: bytes) -> Row:
        """The event of a line; whether its values are legal is for the server to say. Raises InvalidInput."""
        try:
            fields = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            shown = line[:_SHOWN].decode(errors="replace")
            raise InvalidInput("line", shown, f"JSON ({error.msg}, character {error.pos})") from error
        if not isinstance(fields, dict):
            raise InvalidInput("line", line[:_SHOWN].decode(errors="replace"), "a JSON object")
        actions, value = fields.get("actions", 0), fields.get("value", 0.0)
        if type(actions) is not int:
            actions = self._bits(actions)
        for name in fields.keys() - FIELDS - self.ignored:
            limit = f"one of {', '.join(FIELDS)}, or named by --ignore"
            raise InvalidInput("field", name, limit)
        row = Row(_user(fields), _item(fields), actions, _number(value), _integer(fields, "time_ms"))
        if not -(2**63) <= row.item_id < 2**63:
            raise InvalidInput("item_id", row.item_id, "an integer of 64 bits with a sign")
        if not 1 <= row.time_ms <= MAX_TIME_MS:
            raise InvalidInput("time_ms", row.time_ms, f"1 to {MAX_TIME_MS}, milliseconds since 1970")
        if not 0 <= actions < 2**32:
            raise InvalidInput("actions", actions, "a bitmask of 32 bits, a name or a list of names")
        return row

    def _bits(self, names: object) -> int:
        """The bitmask of a name or of several."""
        bits = 0
        for name in [names] if isinstance(names, str) else names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or name not in self.actions:
                known = ", ".join(self.actions) or "none: the model has no actions"
                raise InvalidInput("actions", name, f"actions of the server's model ({known}), or a bitmask")
            bits |= 1 << self.actions[name]
        return bits


def _user(fields: Mapping[str, Any]) -> str:
    """The user's id; a number is taken for its digits."""
    user_id = fields.get("user_id")
    if type(user_id) is int:
        return str(user_id)
    if not isinstance(user_id, str) or not user_id:
        raise InvalidInput("user_id", user_id, "text, or an integer")
    return user_id


def _item(fields: Mapping[str, Any]) -> int:
    """The item's number, which text stands for too."""
    item_id = fields.get("item_id")
    if not isinstance(item_id, str):
        return _integer(fields, "item_id", "an integer, or text")
    try:
        return checked_item_id(item_id)
    except ValueError as error:
        raise InvalidInput("item_id", item_id, str(error)) from error


def _integer(fields: Mapping[str, Any], name: str, limit: str = "an integer") -> int:
    value = fields.get(name)
    if type(value) is not int:
        raise InvalidInput(name, value, limit)
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not -MAX_FLOAT32 <= value <= MAX_FLOAT32:
        raise InvalidInput("value", value, "a number that fits into 32 bits")
    return float(value)

"""Item ids that are text, as they come in requests, to the numbers that the engine knows (`mfalcon.item_ids`).

A hash takes Python a microsecond, which for thousands of candidates is too long. Callers name the same items again and
again, so those that were seen of late are looked up, which is a tenth of that and without a loop in Python.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.item_ids import checked_item_id
from mfalcon.types import Ids

MOST_REMEMBERED: Final = 1 << 17
"""Of a generation; there are two. Texts of 36 bytes take some 40 MB, the longest legal ones 110."""


class _Generation(dict[str, int]):
    """Numbers by text, made when they are asked for. older: the generation before, which is looked at first."""

    def __init__(self, older: dict[str, int]) -> None:
        super().__init__()
        self.older = older

    def __missing__(self, text: str) -> int:
        number = self.older.get(text)
        if number is None:
            number = checked_item_id(text)
        self[text] = number
        return number


class TextIds:
    """What the transports of a process ask. Any thread: two of them may make the same number at once."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        """most: texts of a generation."""
        self._most = most
        self._young = _Generation({})

    @property
    def num_remembered(self) -> int:
        """Texts of both generations."""
        return len(self._young) + len(self._young.older)

    def one(self, text: str) -> int:
        """The number of an id. Raises ValueError, with what it must be, for a text that is none."""
        number = self._young[text]
        self._age()
        return number

    def all(self, texts: Sequence[str], field: str, first: int = 0) -> Ids:
        """[num_texts] numbers. Raises InvalidInput for the first text that is no id. first: the position in the field
        of the first one.
        """
        try:
            numbers = np.fromiter(map(self._young.__getitem__, texts), dtype=np.int64, count=len(texts))
        except ValueError:
            for at, text in enumerate(texts):
                try:
                    self.one(text)
                except ValueError as error:
                    raise InvalidInput(f"{field}[{first + at}]", text, str(error)) from error
            raise
        self._age()
        return numbers

    def _age(self) -> None:
        if len(self._young) > self._most:
            full = self._young
            full.older = {}
            self._young = _Generation(full)

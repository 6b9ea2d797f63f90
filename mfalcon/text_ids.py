"""Item ids that are text, as they come in requests, to the numbers that the engine knows (`mfalcon.item_ids`).

A hash takes Python a microsecond, which for thousands of candidates is too long, so many are hashed in one call of C++.
One alone, and all where that is not compiled, are looked up among those that were seen of late: callers name the same
items again and again.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from kernels.cpu import text_ids as compiled
from mfalcon.errors import InvalidInput
from mfalcon.item_ids import checked_item_id, item_ids
from mfalcon.types import Ids

MOST_REMEMBERED: Final = 1 << 17
"""Of a generation; there are two. Texts of 36 bytes take some 40 MB, the longest legal ones 110."""

HashTexts = Callable[[Sequence[str]], Ids | None]
"""[num_texts] numbers; None if one of the texts is no id."""

_PROBE: Final = ("sku-1", "7", "007", "-9223372036854775808", "\u00e9" * 128)


def compiled_hash() -> HashTexts | None:
    """None where it is not compiled, or says something else than the definition."""
    found = compiled.load()
    numbers = None if found is None else found(_PROBE)
    return found if numbers is not None and np.array_equal(numbers, item_ids(_PROBE)) else None


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

    def __init__(self, hash_texts: HashTexts | None = None, most: int = MOST_REMEMBERED) -> None:
        """hash_texts: of `compiled_hash`. most: texts of a generation."""
        self._hash = hash_texts
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
        if self._hash is not None and (hashed := self._hash(texts)) is not None:
            return hashed
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

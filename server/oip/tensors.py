"""Tensors of the protocol: the elements of an input, however they came, as arrays and texts.

Elements come as little-endian bytes (the binary form of both transports, where each element of BYTES stands behind its
length in 4 bytes), as a list of JSON, or as a repeated field of protobuf. Counts are checked before anything is made of
them, so a tensor costs what the limits allow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mfalcon.errors import InvalidInput
from mfalcon.text_ids import TextIds
from mfalcon.types import Floats, Ids

BYTES: Final = "BYTES"
LENGTH_BYTES: Final = 4
"""Of the length before an element of BYTES."""

NUMBERS: Final[Mapping[str, np.dtype[Any]]] = {
    "INT64": np.dtype("<i8"),
    "UINT32": np.dtype("<u4"),
    "FP32": np.dtype("<f4"),
}
"""The datatypes of numbers that we take and give."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input that is not yet read. content: its elements, see the module."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes | Sequence[object]

    def num_elements(self, most: int) -> int:
        """Of a tensor of one dimension. Raises InvalidInput for another, and for more."""
        if len(self.shape) != 1 or not 0 <= self.shape[0] <= most:
            shown = list(self.shape[:8])
            raise InvalidInput(f"inputs.{self.name}.shape", shown, f"one dimension of at most {most}")
        return self.shape[0]

    def must_be(self, *datatypes: str) -> None:
        """Raise InvalidInput for another datatype."""
        if self.datatype not in datatypes:
            raise InvalidInput(f"inputs.{self.name}.datatype", self.datatype, " or ".join(datatypes))


def numbers(tensor: Tensor, datatype: str, most: int) -> NDArray[Any]:
    """[num_elements] of a datatype of `NUMBERS`. Raises InvalidInput."""
    tensor.must_be(datatype)
    num, dtype, content = tensor.num_elements(most), NUMBERS[datatype], tensor.content
    if isinstance(content, bytes):
        if len(content) != num * dtype.itemsize:
            limit = f"{num * dtype.itemsize} bytes, of the {num} elements that its shape says"
            raise InvalidInput(f"inputs.{tensor.name}", f"{len(content)} bytes", limit)
        return np.frombuffer(content, dtype)
    _check_count(tensor, num)
    kinds = {int, float} if datatype == "FP32" else {int}
    if not set(map(type, content)) <= kinds:
        at = next(at for at, element in enumerate(content) if type(element) not in kinds)
        raise InvalidInput(f"inputs.{tensor.name}.data[{at}]", _shown(content[at]), f"a number ({datatype})")
    try:
        with np.errstate(over="ignore"):  # infinity is refused where the limits are
            return np.array(content, dtype=dtype)
    except OverflowError as error:
        raise InvalidInput(f"inputs.{tensor.name}.data", "a number beyond it", datatype) from error


def integers(tensor: Tensor, most: int) -> Ids:
    """[num_elements] of INT64."""
    return numbers(tensor, "INT64", most).astype(np.int64, copy=False)


def floats(tensor: Tensor, most: int) -> Floats:
    """[num_elements] of FP32."""
    return numbers(tensor, "FP32", most).astype(np.float32, copy=False)


def texts(tensor: Tensor, most: int) -> list[str]:
    """The elements of BYTES, which are UTF-8. Raises InvalidInput."""
    tensor.must_be(BYTES)
    num, content = tensor.num_elements(most), tensor.content
    elements: Sequence[object]
    if isinstance(content, bytes):
        elements = list(_elements(tensor, content, num))
    else:
        _check_count(tensor, num)
        elements = content
    return [_text(tensor, at, element) for at, element in enumerate(elements)]


def item_ids(tensor: Tensor, most: int, text_ids: TextIds) -> Ids:
    """[num_elements] item ids, which come as INT64 or as text. Raises InvalidInput."""
    tensor.must_be("INT64", BYTES)
    return text_ids.all(texts(tensor, most), tensor.name) if tensor.datatype == BYTES else integers(tensor, most)


def _elements(tensor: Tensor, content: bytes, num: int) -> Iterator[bytes]:
    """The elements of a tensor of BYTES, so many."""
    at = 0
    for index in range(num):
        start = at + LENGTH_BYTES
        stop = start + int.from_bytes(content[at:start], "little")
        if start > len(content) or stop > len(content):
            limit = f"{num} elements, each behind its length in {LENGTH_BYTES} bytes"
            raise InvalidInput(f"inputs.{tensor.name}", f"an end in element {index}", limit)
        yield content[start:stop]
        at = stop
    if at != len(content):
        raise InvalidInput(f"inputs.{tensor.name}", f"{len(content)} bytes", f"{at}: it has {num} elements")


def _check_count(tensor: Tensor, num: int) -> None:
    if len(tensor.content) != num:
        raise InvalidInput(f"inputs.{tensor.name}.data", f"{len(tensor.content)} elements", f"{num}, as its shape says")


def _text(tensor: Tensor, at: int, element: object) -> str:
    if isinstance(element, str):
        return element
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"inputs.{tensor.name}[{at}]", element[:20], "UTF-8") from error
    raise InvalidInput(f"inputs.{tensor.name}.data[{at}]", _shown(element), "text")


def _shown(element: object) -> object:
    """Of an element of JSON, that which is fit for a message."""
    return element if element is None or isinstance(element, bool | int | float | str) else type(element).__name__

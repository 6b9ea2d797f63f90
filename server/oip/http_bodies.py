"""JSON of the protocol: the head of an inference request, whose tensors may follow it as bytes, and its answer.

A request without the header `Inference-Header-Content-Length` is JSON alone. With it, so many bytes are JSON, and
behind them lie the elements of each input that says `binary_data_size`, in their order.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, FailFast, Field, ValidationInfo

from mfalcon.errors import InvalidInput
from server.explain import brief
from server.http import codec
from server.http.fields import SIGNS_OF_A_CANDIDATE, Body, Int64, Reading, RequestBody, parse, refuse_unknown
from server.limits import Limits
from server.oip.answer import Answer, Output
from server.oip.question import MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, Parameter, Question
from server.oip.tensors import Tensor

HEAD_LENGTH: Final = "inference-header-content-length"
BINARY_SIZE: Final = "binary_data_size"
BINARY_OUTPUT: Final = "binary_data_output"
BINARY: Final = "binary_data"
SIGNS_OF_A_TENSOR: Final = 20
COLUMNS: Final = 8
"""Tensors of as many numbers as there may be candidates, in JSON; who has more sends bytes."""


def checked_parameters(parameters: object) -> object:
    """Their number and kinds, of which pydantic would describe each that is wrong, four times. Raises ValueError."""
    if isinstance(parameters, dict):
        if len(parameters) > MAX_PARAMETERS:
            raise ValueError(f"at most {MAX_PARAMETERS} parameters")
        for name, value in parameters.items():
            if not isinstance(value, bool | int | float | str):
                raise ValueError(f"true, false, a number or text of each name, not {brief(value)!r} ({name[:80]})")
    return parameters


def each_known(kind: type[Body]) -> Callable[[object, ValidationInfo[Reading | None]], object]:
    """A check of objects in a list, before pydantic describes every unknown field of each. Raises InvalidInput."""

    def check(values: object, info: ValidationInfo[Reading | None]) -> object:
        assert info.field_name is not None
        for index, fields in enumerate(values if isinstance(values, list) else ()):
            refuse_unknown(fields, kind.model_fields, (info.field_name, index))
        return values

    return check


Parameters = Annotated[dict[str, bool | int | float | str], BeforeValidator(checked_parameters)]


class InputBody(Body):
    """An input tensor."""

    name: str
    datatype: str
    shape: Annotated[list[Int64], Field(max_length=8)]
    parameters: Parameters = Field(default={})
    data: list[Any] | None = Field(default=None, description="The elements; none where they follow as bytes.")


class OutputBody(Body):
    """An output that is wanted."""

    name: str
    parameters: Parameters = Field(default={})


class InferBody(RequestBody):
    """What is asked."""

    id: str = ""
    parameters: Parameters = Field(default={})
    inputs: Annotated[list[InputBody], FailFast(), Field(max_length=MAX_INPUTS), BeforeValidator(each_known(InputBody))]
    outputs: Annotated[
        list[OutputBody], FailFast(), Field(max_length=MAX_OUTPUTS), BeforeValidator(each_known(OutputBody))
    ] = Field(default=[])

    @classmethod
    def num_signs(cls, most: Limits) -> int:
        """See `RequestBody`."""
        tensors = SIGNS_OF_A_TENSOR * (MAX_INPUTS + MAX_OUTPUTS)
        return tensors + SIGNS_OF_A_CANDIDATE * most.max_candidates + 4 * most.max_recent_events

    @classmethod
    def num_commas(cls, most: Limits) -> int:
        """See `RequestBody`."""
        return COLUMNS * most.max_candidates


class Asked:
    """A request that was read. body: its head. binary: the names of the outputs that are wanted as bytes, or all."""

    def __init__(self, raw: bytes, head_length: str | None, reading: Reading) -> None:
        """head_length: as the header has it. Raises InvalidInput."""
        num = len(raw) if head_length is None else _head_length(head_length, len(raw))
        self.body = parse(InferBody, raw[:num], reading)
        self._rest = raw[num:]

    def question(self, model: str, version: str) -> Question:
        """What is asked of a model. Raises InvalidInput."""
        inputs, at = list[Tensor](), 0
        for index, each in enumerate(self.body.inputs):
            size = _binary_size(each, index, len(self._rest) - at)
            content: bytes | Sequence[object]
            if size is None:
                content = each.data if each.data is not None else []
            else:
                content, at = self._rest[at : at + size], at + size
            inputs.append(Tensor(each.name, each.datatype, tuple(each.shape), content))
        if at != len(self._rest):
            raise InvalidInput("body", f"{len(self._rest)} bytes behind the head", f"{at}, as the inputs say")
        parameters: dict[str, Parameter] = dict(self.body.parameters)
        parameters.pop(BINARY_OUTPUT, None)
        outputs = [each.name for each in self.body.outputs]
        return Question(model, version, self.body.id, parameters, inputs, outputs)

    def wants_bytes(self, output: str) -> bool:
        """Whether an output goes as bytes."""
        for each in self.body.outputs:
            if each.name == output and BINARY in each.parameters:
                return each.parameters[BINARY] is True
        return self.body.parameters.get(BINARY_OUTPUT) is True


def _head_length(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) <= most):
        raise InvalidInput(HEAD_LENGTH, text[:80], f"0 to {most}, the bytes of the body")
    return int(text)


def _binary_size(tensor: InputBody, index: int, left: int) -> int | None:
    """How many bytes of it follow the head, None if it is in there. Raises InvalidInput."""
    field = f"inputs[{index}].parameters.{BINARY_SIZE}"
    size = tensor.parameters.get(BINARY_SIZE)
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
        raise InvalidInput(field, size, f"0 to {left}, the bytes that are left behind the head")
    if tensor.data is not None:
        raise InvalidInput(f"inputs[{index}].data", "a list", f"absent with {BINARY_SIZE}")
    return size


def infer_reply(answer: Answer, asked: Asked) -> tuple[bytes, int | None]:
    """The answer, and how many of its bytes are JSON if others follow."""
    binary = [each for each in answer.outputs if asked.wants_bytes(each.name)]
    head = codec.dump(
        {
            "model_name": answer.model,
            "model_version": answer.version,
            "id": answer.id,
            "parameters": answer.parameters,
            "outputs": [_output(each, is_binary=each in binary) for each in answer.outputs],
        }
    )
    if not binary:
        return head, None
    return b"".join((head, *(each.values.tobytes() for each in binary))), len(head)


def _output(output: Output, *, is_binary: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "name": output.name,
        "datatype": output.datatype,
        "shape": list(output.values.shape),
    }
    if is_binary:
        return fields | {"parameters": {BINARY_SIZE: output.values.nbytes}}
    return fields | {"data": output.values.tolist()}

"""Messages of proto/inference.proto to the words of this package and back."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from mfalcon.errors import InvalidInput
from mfalcon.types import ModelInfo
from proto import inference_pb2 as pb
from server.grpc.wire import MessageLimits, Repeated
from server.limits import Limits
from server.oip.answer import PLATFORM, Answer, TensorInfo, inputs_of, outputs_of
from server.oip.question import MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, Parameter, Question
from server.oip.tensors import Tensor

CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the elements of each datatype are."""


def infer_limits(limits: Limits) -> MessageLimits:
    """What a ModelInferRequest may hold."""
    most = max(limits.max_candidates, limits.max_recent_events) + 1
    numbers = limits.max_candidates + 3 * limits.max_recent_events + MAX_INPUTS
    tensor, asked, request = pb.ModelInferRequest.InferInputTensor, pb.InferTensorContents, pb.ModelInferRequest
    requested = pb.ModelInferRequest.InferRequestedOutputTensor
    contents = MessageLimits(
        asked.DESCRIPTOR.full_name,
        Repeated("inputs.contents", asked.BYTES_CONTENTS_FIELD_NUMBER, most, f"at most {most} texts in all"),
        *(
            Repeated("inputs.contents", number, numbers, f"at most {numbers} whole numbers in all", is_varint=True)
            for number in (
                asked.BOOL_CONTENTS_FIELD_NUMBER,
                asked.INT_CONTENTS_FIELD_NUMBER,
                asked.INT64_CONTENTS_FIELD_NUMBER,
                asked.UINT_CONTENTS_FIELD_NUMBER,
                asked.UINT64_CONTENTS_FIELD_NUMBER,
            )
        ),
        in_all=True,
    )
    return MessageLimits(
        request.DESCRIPTOR.full_name,
        Repeated("inputs", request.INPUTS_FIELD_NUMBER, MAX_INPUTS, f"2 to {MAX_INPUTS} tensors"),
        Repeated("outputs", request.OUTPUTS_FIELD_NUMBER, MAX_OUTPUTS, f"at most {MAX_OUTPUTS} tensors"),
        Repeated(
            "raw_input_contents", request.RAW_INPUT_CONTENTS_FIELD_NUMBER, MAX_INPUTS, "as many as there are inputs"
        ),
        _parameters(request.PARAMETERS_FIELD_NUMBER),
        inner={
            request.INPUTS_FIELD_NUMBER: MessageLimits(
                tensor.DESCRIPTOR.full_name,
                _parameters(tensor.PARAMETERS_FIELD_NUMBER),
                Repeated("inputs.shape", tensor.SHAPE_FIELD_NUMBER, MAX_INPUTS, "one dimension each", is_varint=True),
                inner={tensor.CONTENTS_FIELD_NUMBER: contents},
            ),
            request.OUTPUTS_FIELD_NUMBER: MessageLimits(
                requested.DESCRIPTOR.full_name, _parameters(requested.PARAMETERS_FIELD_NUMBER)
            ),
        },
    )


def _parameters(number: int) -> Repeated:
    return Repeated("parameters", number, MAX_PARAMETERS, f"at most {MAX_PARAMETERS} parameters")


def question(message: pb.ModelInferRequest) -> Question:
    """Not yet checked. Raises InvalidInput for elements that are not where they must be."""
    raw, num = message.raw_input_contents, len(message.inputs)
    if raw and len(raw) != num:
        raise InvalidInput("raw_input_contents", len(raw), f"{num}, as many as there are inputs, or none")
    return Question(
        model=message.model_name,
        version=message.model_version,
        id=message.id,
        parameters={name: _parameter(name, each) for name, each in message.parameters.items()},
        inputs=[
            Tensor(each.name, each.datatype, tuple(each.shape), raw[at] if raw else _contents(each))
            for at, each in enumerate(message.inputs)
        ],
        outputs=[each.name for each in message.outputs],
    )


def _parameter(name: str, message: pb.InferParameter) -> Parameter:
    chosen = message.WhichOneof("parameter_choice")
    if chosen is None:
        raise InvalidInput(f"parameters.{name[:80]}", None, "given")
    value: Parameter = getattr(message, chosen)
    return value


def _contents(tensor: pb.ModelInferRequest.InferInputTensor) -> Sequence[object]:
    name = CONTENTS.get(tensor.datatype)
    if name is None:
        raise InvalidInput(f"inputs.{tensor.name[:80]}.datatype", tensor.datatype, ", ".join(CONTENTS))
    contents: Sequence[object] = getattr(tensor.contents, name)
    return contents


def infer_response(answer: Answer, *, raw: bool) -> bytes:
    """A serialized ModelInferResponse. raw: its elements are bytes, as those of the request were."""
    message = pb.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=answer.id, parameters=_told(answer.parameters)
    )
    for each in answer.outputs:
        output = message.outputs.add(name=each.name, datatype=each.datatype, shape=each.values.shape)
        if raw:
            message.raw_output_contents.append(np.ascontiguousarray(each.values).tobytes())
        else:
            getattr(output.contents, CONTENTS[each.datatype]).extend(each.values.tolist())
    return message.SerializeToString()


def _told(parameters: Mapping[str, Parameter]) -> dict[str, pb.InferParameter]:
    told = {}
    for name, value in parameters.items():
        if isinstance(value, bool):
            told[name] = pb.InferParameter(bool_param=value)
        elif isinstance(value, int):
            told[name] = pb.InferParameter(int64_param=value)
        else:
            told[name] = pb.InferParameter(string_param=str(value))
    return told


def metadata(info: ModelInfo) -> pb.ModelMetadataResponse:
    """Of a served model."""
    return pb.ModelMetadataResponse(
        name=info.name,
        versions=[info.version],
        platform=PLATFORM,
        inputs=map(_tensor, inputs_of(info)),
        outputs=map(_tensor, outputs_of(info)),
    )


def _tensor(info: TensorInfo) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=info.name, datatype=info.datatype, shape=info.shape)

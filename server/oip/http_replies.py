"""JSON bodies of the protocol's other answers, as /openapi.json describes them."""

from typing import Final

from pydantic import ConfigDict, Field

from mfalcon.types import ModelInfo
from server.http import codec
from server.http.fields import Body
from server.oip.answer import EXTENSIONS, PLATFORM, SERVER, VERSION, TensorInfo, inputs_of, outputs_of
from server.oip.question import Parameter

PREFIX: Final = "/v2"


class LiveReply(Body):
    """Whether the process answers."""

    live: bool


class ReadyReply(Body):
    """Whether requests are welcome."""

    ready: bool


class ServerReply(Body):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class TensorReply(Body):
    """What a tensor of a model is."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1 where the length is yours.")


class ModelMetadataReply(Body):
    """What a model is."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorReply]
    outputs: list[TensorReply]


class OutputReply(Body):
    """A tensor of an answer."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] = Field(default={}, description="`binary_data_size` where its elements follow as bytes.")
    data: list[float] | list[int] | None = None


class InferReply(Body):
    """Scores in tensors."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: list[OutputReply]


class InferenceErrorReply(Body):
    """Why there is no result: the same text as in all other errors, as this protocol has it."""

    error: str


def is_inference(path: str) -> bool:
    """Whether a path is one of this protocol."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def inference_error(message: str) -> bytes:
    """An InferenceErrorReply as JSON."""
    return codec.dump({"error": message})


def server_reply() -> bytes:
    """A ServerReply as JSON."""
    return codec.dump({"name": SERVER, "version": VERSION, "extensions": EXTENSIONS})


def metadata_reply(info: ModelInfo) -> bytes:
    """A ModelMetadataReply as JSON."""

    def told(tensors: tuple[TensorInfo, ...]) -> list[dict[str, object]]:
        return [{"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in tensors]

    return codec.dump(
        {
            "name": info.name,
            "versions": [info.version],
            "platform": PLATFORM,
            "inputs": told(inputs_of(info)),
            "outputs": told(outputs_of(info)),
        }
    )

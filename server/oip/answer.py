"""What is answered in tensors, and which tensors a model has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mfalcon import __version__
from mfalcon.errors import InvalidInput, UnknownModel
from mfalcon.types import ModelInfo, RankResult
from server.oip.question import CONTEXT, FEATURES, Parameter, Question
from server.oip.tensors import BYTES

SERVER: Final = "mfalcon"
VERSION: Final = __version__
EXTENSIONS: Final = ("binary_tensor_data", "parameters")
PLATFORM: Final = "mfalcon"
TASK_SCORES: Final = "task_scores."
ANY: Final = -1
"""A length that is the caller's."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a tensor of a model is."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor of an answer, of one dimension."""

    name: str
    datatype: str
    values: NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Answer:
    """A ModelInferResponse of either transport."""

    model: str
    version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: Sequence[Output]


def inputs_of(info: ModelInfo) -> tuple[TensorInfo, ...]:
    """All but the first two may be left out."""
    ids = BYTES if info.item_ids == "text" else "INT64"
    return (
        TensorInfo("user_id", BYTES, (1,)),
        TensorInfo("candidate_ids", ids, (ANY,)),
        TensorInfo("request_time_ms", "INT64", (1,)),
        TensorInfo("recent_item_ids", ids, (ANY,)),
        TensorInfo("recent_times_ms", "INT64", (ANY,)),
        TensorInfo("recent_actions", "UINT32", (ANY,)),
        TensorInfo("recent_values", "FP32", (ANY,)),
        *(TensorInfo(CONTEXT + feature.name, "INT64", (1,)) for feature in info.context_features),
        *(TensorInfo(FEATURES + name, "FP32", (ANY,)) for name in info.dense_features if name not in info.counters),
    )


def outputs_of(info: ModelInfo) -> tuple[TensorInfo, ...]:
    """In their order."""
    return (
        TensorInfo("scores", "FP32", (ANY,)),
        *(TensorInfo(TASK_SCORES + task, "FP32", (ANY,)) for task in info.tasks),
        *(TensorInfo(name, "UINT32", (ANY,)) for name in ("top", "unknown", "failed")),
    )


def check_outputs(question: Question, info: ModelInfo) -> None:
    """Names of the model's. Raises InvalidInput."""
    known = [output.name for output in outputs_of(info)]
    for at, name in enumerate(question.outputs):
        if name not in known:
            raise InvalidInput(f"outputs[{at}].name", name, ", ".join(known))
        if name in question.outputs[:at]:
            raise InvalidInput(f"outputs[{at}].name", name, "a name that is given once")


def check_version(asked: str, version: str) -> None:
    """The version of a model that a caller names, if any, is the one. Raises UnknownModel."""
    if asked not in ("", version):
        raise UnknownModel(f"version: got {asked[:80]!r}, must be {version!r} or empty")


def answer_of(question: Question, model: str, result: RankResult) -> Answer:
    """What is told of a result, in the order of the request."""
    every: dict[str, Output] = {"scores": Output("scores", "FP32", result.scores)}
    for task, scores in zip(result.tasks, result.task_scores, strict=True):
        every[TASK_SCORES + task] = Output(TASK_SCORES + task, "FP32", scores)
    for name, positions in (("top", result.top), ("unknown", result.unknown), ("failed", result.failed)):
        every[name] = Output(name, "UINT32", positions)
    parameters: dict[str, Parameter] = {
        "num_scored": result.num_scored,
        "history_len": result.history_len,
        "history_version": result.history_version.hex(),
        "stale": result.stale,
        "partial_merge": result.partial_merge,
        "items_version": result.items_version,
        "graph_version": result.graph_version,
        "counters_version": result.counters_version,
        "counters_stale": result.counters_stale,
    }
    outputs = [every[name] for name in question.outputs] if question.outputs else list(every.values())
    return Answer(model, result.model_version, question.id, parameters, outputs)

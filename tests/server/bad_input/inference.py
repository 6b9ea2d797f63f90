"""The Open Inference Protocol, over both transports: what is wrong with tensors is said as Rank says it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from server.oip.grpc_service import SERVICE as INFERENCE
from tests.server.bad_input.cases import INVALID, Case, GrpcCase, HttpCase
from tests.server.oip.asking import ITEMS, PRICE, RECENT, TIME, USER, Tensor, binary_body, message

PATH = "/v2/models/small/infer"
NO_MODEL = "model: got 'other', must be 'small' or empty"


def over_both(
    shown: str, inputs: Sequence[Tensor], says: str, parameters: dict[str, Any] | None = None
) -> Sequence[Case]:
    """These inputs as typed elements and as JSON."""
    asked = message(inputs, parameters or {}, model="small").SerializeToString()
    return over_grpc(shown, asked, says), over_http(shown, {"inputs": inputs, "parameters": parameters or {}}, says)


def over_grpc(shown: str, asked: bytes, says: str, code: str = INVALID, method: str = "ModelInfer") -> GrpcCase:
    """A call of the protocol."""
    return GrpcCase(method, shown, asked, code, says, service=INFERENCE)


def over_http(shown: str, body: object, says: str) -> HttpCase:
    """The same over HTTP, where an error has no name of its status."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return HttpCase("POST", PATH, shown, raw, 422, "", says)


def behind(shown: str, user: bytes, items: bytes, says: str, head_len: int | None = None) -> HttpCase:
    """Elements as bytes behind the head of one user and two candidates."""
    head, tail = binary_body(user, items)
    length = (("inference-header-content-length", str(len(head) if head_len is None else head_len)),)
    return HttpCase("POST", PATH, shown, head + tail, 422, "", says, headers=length)


def named(name: str) -> Tensor:
    """A number by that name."""
    return TIME | {"name": name, "data": [1]}


LONG = "context." + "x" * 10_000
ANN = b"\3\0\0\0ann"
TWO = np.array([1, 2], "<i8").tobytes()

CASES: Sequence[Case] = (
    *over_both("no user", [ITEMS], "inputs.user_id: got None, must be given"),
    *over_both("no candidates", [USER, ITEMS | {"shape": [0], "data": []}], "candidates: got 0, must be 1 to 16384"),
    *over_both("a tensor that there is not", [USER, ITEMS, named("items")], "inputs[2].name: got 'items', must be"),
    *over_both(
        "a tensor twice", [USER, USER, ITEMS], "inputs[1].name: got 'user_id', must be a name that is given once"
    ),
    *over_both("a name of 10,008 characters", [USER, ITEMS, named(LONG)], "inputs[2].name: got 10008, must be at most"),
    *over_both("another datatype", [USER, ITEMS | {"datatype": "FP32"}], "inputs.candidate_ids.datatype: got 'FP32'"),
    *(
        case
        for shape in ([-1], [1, 2], [2**62, 2**62], [2**63 - 1], [])
        for case in over_both(
            f"shape {shape}", [USER, ITEMS | {"shape": shape}], f"inputs.candidate_ids.shape: got {shape}, must be one"
        )
    ),
    *over_both("a shape of more", [USER, ITEMS | {"shape": [3]}], "inputs.candidate_ids.data: got '2 elements', must"),
    *over_both("events without times", [USER, ITEMS, RECENT], "inputs.recent_times_ms: got None, must be given"),
    *over_both(
        "a context that the model has not", [USER, ITEMS, named("context.mood")], "context: got 'mood', must be"
    ),
    *over_both(
        "a feature that the model has not",
        [USER, ITEMS, PRICE | {"name": "features.prize"}],
        "features.names[0]: got 'prize', must be one of",
    ),
    *over_both("an unknown parameter", [USER, ITEMS], "parameters.priority: got 1, must be absent", {"priority": 1}),
    *over_both("timeout 0", [USER, ITEMS], "parameters.timeout: got 0, must be 1 to 3600000000", {"timeout": 0}),
    *over_both("top_k as text", [USER, ITEMS], "parameters.top_k: got '2', must be 0 to 4294967295", {"top_k": "2"}),
    # gRPC alone
    over_grpc("bytes that are no protobuf", b"\xff" * 9, "inference.ModelInferRequest: got 9 bytes"),
    over_grpc("4 MiB of empty tensors", b"\x2a\0" * 2**21, "inputs: got more than"),
    over_grpc("100,000 outputs", b"\x32\0" * 100_000, "outputs: got more than 1024, must be at most 1024 tensors"),
    over_grpc(
        "a feature of NaN",
        message([USER, ITEMS, PRICE | {"data": [1.5, float("nan")]}], {}, model="small").SerializeToString(),
        "features.values[1]: got nan, must be a finite 32-bit float",
    ),
    over_grpc(
        "no model of that name", message([USER, ITEMS], {}, model="other").SerializeToString(), NO_MODEL, "NOT_FOUND"
    ),
    over_grpc("a model that is not served", b"\x0a\5other", NO_MODEL, "NOT_FOUND", method="ModelMetadata"),
    over_grpc("a model that is not served", b"\x0a\5other", NO_MODEL, "NOT_FOUND", method="ModelReady"),
    # HTTP alone
    over_http("not JSON", b"{", "body: got"),
    over_http(
        "lists 1,000 deep", b'{"inputs": ' + b"[" * 1_000 + b"]" * 1_000 + b"}", "inputs[0]: got 'a list', must be"
    ),
    over_http("an unknown field", {"inputs": [], "model": "a"}, "model: got 'a', must be absent"),
    over_http("65 parameters", {"inputs": [], "parameters": {f"k{n}": 1 for n in range(65)}}, "parameters: got"),
    over_http("a parameter that is a list", {"inputs": [], "parameters": {"top_k": []}}, "parameters: got 'an object'"),
    over_http(
        "an id of 1,025 characters", {"inputs": [USER, ITEMS], "id": "x" * 1_025}, "id: got 1025, must be at most"
    ),
    over_http(
        "an output twice", {"inputs": [USER, ITEMS], "outputs": [{"name": "top"}] * 2}, "outputs[1].name: got 'top'"
    ),
    behind(
        "a length of BYTES beyond its end", b"\xff\xff\xff\x7fann", TWO, "inputs.user_id: got 'an end in element 0'"
    ),
    behind("BYTES that are not UTF-8", b"\3\0\0\0an\xff", TWO, "inputs.user_id[0]: got b'an\\xff', must be UTF-8"),
    behind("a byte too few of a tensor", ANN, TWO[:-1], "inputs.candidate_ids: got '15 bytes', must be 16 bytes"),
    behind("a head longer than the body", ANN, TWO, "inference-header-content-length: got '1000000'", 1_000_000),
    behind("a head that ends in its middle", ANN, TWO, "body: got", 20),
    HttpCase("POST", PATH, "more than 4 MiB", b" " * (4 * 2**20 + 1), 413, "", "must be at most 4194304"),
    HttpCase(
        "POST",
        "/v2/models/other/infer",
        "a model that is not served",
        orjson.dumps({"inputs": [USER, ITEMS]}),
        404,
        "",
        NO_MODEL,
    ),
    HttpCase("GET", "/v2/models/other", "a model that is not served", b"", 404, "", NO_MODEL),
    HttpCase("GET", PATH, "a verb that there is not", b"", 405, "", "Method Not Allowed"),
)

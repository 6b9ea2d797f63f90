"""A stock client of the protocol, in a process of its own: its messages and ours have the same names.

`python -m tests.server.oip.stock_client GRPC HTTP MODEL` asks a server of a FakeEngine over both transports and prints
what it was told as JSON.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

CANDIDATES = [5, 1, 3, 2**62 + 1]


def tensors(kind: Any, user_id: bytes = b"ann", *, as_text: bool = False) -> list[Any]:
    """The inputs of a rank, by either of the client's modules."""
    ids = [str(each).encode() for each in CANDIDATES] if as_text else CANDIDATES
    arrays = {
        "user_id": np.array([user_id], dtype=np.object_),
        "candidate_ids": np.array(ids, dtype=np.object_ if as_text else np.int64),
        "recent_item_ids": np.array([7, 8], dtype=np.int64),
        "recent_times_ms": np.array([1_000, 2_000], dtype=np.int64),
        "recent_actions": np.array([1, 2], dtype=np.uint32),
        "context.gender": np.array([1], dtype=np.int64),
        "features.price": np.array([1, 2, 3, 4], dtype=np.float32),
    }
    given = []
    for name, array in arrays.items():
        datatype = {"O": "BYTES", "f": "FP32", "u": "UINT32"}.get(array.dtype.kind, "INT64")
        given.append(kind.InferInput(name, list(array.shape), datatype))
        given[-1].set_data_from_numpy(array)
    return given


def told_by(client: Any, kind: Any, model: str) -> dict[str, Any]:
    """What one transport says."""
    told: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
    }
    as_json: dict[str, Any] = {"as_json": True} if kind is tritonclient.grpc else {}
    told["server"] = client.get_server_metadata(**as_json)
    told["model"] = client.get_model_metadata(model, **as_json)
    for name, as_text in (("numbers", False), ("texts", True)):
        result = client.infer(
            model, tensors(kind, as_text=as_text), request_id="r1", timeout=30_000_000, parameters={"top_k": 2}
        )
        told[name] = {
            output: result.as_numpy(output).tolist()
            for output in ("scores", "task_scores.like", "task_scores.rating", "top", "unknown", "failed")
        }
    response = result.get_response(**as_json) if as_json else result.get_response()
    told["response"] = {name: response[name] for name in ("model_name", "model_version", "id", "parameters")}
    wanted = [kind.InferRequestedOutput("top"), kind.InferRequestedOutput("scores")]
    result = client.infer(model, tensors(kind), outputs=wanted)
    told["wanted"] = [result.as_numpy("top").tolist(), result.as_numpy("scores").tolist()]
    try:
        client.infer(model, tensors(kind, b""))
    except InferenceServerException as error:
        told["refused"] = [error.status(), error.message()]
    return told


def main() -> None:
    """Ask over both transports."""
    by_grpc, by_http, model = sys.argv[1:]
    told = {
        "grpc": told_by(tritonclient.grpc.InferenceServerClient(by_grpc), tritonclient.grpc, model),
        "http": told_by(tritonclient.http.InferenceServerClient(by_http), tritonclient.http, model),
        "numbers": {
            message.full_name: {field.name: field.number for field in message.fields}
            for each in service_pb2.DESCRIPTOR.message_types_by_name.values()
            for message in (each, *each.nested_types)
        },
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()

"""Tensors of a request, as JSON has them, and the same request for gRPC and as bytes."""

import json
from collections.abc import Sequence
from typing import Any

from proto import inference_pb2 as pb

Tensor = dict[str, Any]

USER: Tensor = {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["ann"]}
ITEMS: Tensor = {"name": "candidate_ids", "datatype": "INT64", "shape": [2], "data": [1, 2]}
TIME: Tensor = {"name": "request_time_ms", "datatype": "INT64", "shape": [1], "data": [1_000_000]}
RECENT: Tensor = {"name": "recent_item_ids", "datatype": "INT64", "shape": [1], "data": [7]}
PRICE: Tensor = {"name": "features.price", "datatype": "FP32", "shape": [2], "data": [1.5, 2]}
CONTENTS = {"INT64": "int64_contents", "FP32": "fp32_contents", "UINT32": "uint_contents"}


def message(inputs: Sequence[Tensor], parameters: dict[str, Any], model: str = "fake") -> pb.ModelInferRequest:
    """The same request for gRPC, its elements in typed contents."""
    request = pb.ModelInferRequest(model_name=model)
    for name, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[name], kind, value)
    for each in inputs:
        tensor = request.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        if each["datatype"] == "BYTES":
            tensor.contents.bytes_contents.extend(text.encode() for text in each["data"])
        else:
            getattr(tensor.contents, CONTENTS[each["datatype"]]).extend(each["data"])
    return request


def binary_body(user: bytes, items: bytes, **more: object) -> tuple[bytes, bytes]:
    """The head of a request of one user and two candidates whose elements are bytes, and these. more: of the head."""
    sizes = [{"parameters": {"binary_data_size": len(content)}} for content in (user, items)]
    heads = [{**tensor, **size} for tensor, size in zip((USER, ITEMS), sizes, strict=True)]
    for head in heads:
        del head["data"]
    return json.dumps({"inputs": heads, **more}).encode(), user + items

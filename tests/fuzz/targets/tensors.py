"""Any bytes as an inference request of the Open Inference Protocol. The first byte is the transport; over HTTP the next
two are the length of the JSON head, which tensors follow.
"""

import json

from google.protobuf.message import DecodeError

from mfalcon.errors import InvalidInput
from mfalcon.text_ids import TextIds
from mfalcon.types import RankRequest
from proto import inference_pb2 as pb
from server.http.fields import Reading
from server.oip.grpc_codec import infer_limits, question
from server.oip.http_bodies import Asked
from server.oip.question import Question, check_head, rank_request
from tests.fuzz.served import LIMITS, Defect

MOST_SAID = 1_000
MESSAGES = infer_limits(LIMITS)
READING = Reading(LIMITS)
USER = {"name": "user_id", "datatype": "BYTES", "shape": [1], "data": ["ann"]}
ITEMS = {"name": "candidate_ids", "datatype": "INT64", "shape": [2], "data": [1, 2]}


def seeds() -> list[bytes]:
    """A request of each transport, with its elements typed and as bytes."""
    request = pb.ModelInferRequest(model_name="fake", id="r", parameters={"top_k": pb.InferParameter(int64_param=2)})
    for name, datatype in (("user_id", "BYTES"), ("candidate_ids", "INT64"), ("features.price", "FP32")):
        request.inputs.add(name=name, datatype=datatype, shape=[1])
    typed = pb.ModelInferRequest.FromString(request.SerializeToString())
    typed.inputs[0].contents.bytes_contents.append(b"ann")
    typed.inputs[1].contents.int64_contents.append(7)
    typed.inputs[2].contents.fp32_contents.append(1.5)
    request.raw_input_contents.extend([b"\3\0\0\0ann", bytes(8), bytes(4)])
    recent = [
        {"name": "recent_item_ids", "datatype": "BYTES", "shape": [1], "data": ["x"]},
        {"name": "recent_times_ms", "datatype": "INT64", "shape": [1], "data": [5]},
        {"name": "context.hour", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
    plain = json.dumps({"inputs": [USER, ITEMS, *recent], "parameters": {"recompute": True}}).encode()
    binary = {"name": "candidate_ids", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [USER, binary], "outputs": [{"name": "scores"}]}).encode()
    return [
        b"\0" + typed.SerializeToString(),
        b"\0" + request.SerializeToString(),
        b"\1" + len(plain).to_bytes(2, "little") + plain,
        b"\1" + len(head).to_bytes(2, "little") + head + bytes(8),
    ]


def target(data: bytes) -> None:
    """A request within its limits, or a refusal that names a field and fits into the status of a call."""
    if len(data) < 3:
        return
    try:
        asked = by_http(data[1:]) if data[0] % 2 else by_grpc(data[1:])
        check_head(asked)
        request = rank_request(asked, LIMITS, TextIds())
    except DecodeError:
        return
    except InvalidInput as error:
        if len(str(error)) > MOST_SAID:
            raise Defect(f"{len(str(error))} characters of a refusal") from error
        return
    check(request)


def by_grpc(raw: bytes) -> Question:
    MESSAGES.check(raw)
    return question(pb.ModelInferRequest.FromString(raw))


def by_http(data: bytes) -> Question:
    raw = data[2:]
    head = min(len(raw), int.from_bytes(data[:2], "little"))
    return Asked(raw, None if head == len(raw) else str(head), READING).question("fake", "")


def check(request: RankRequest) -> None:
    """Raise Defect for what is not within the limits."""
    num, dense = len(request.candidates), request.dense
    if num > LIMITS.max_candidates or len(request.recent_events) > LIMITS.max_recent_events:
        raise Defect(f"{num} candidates, {len(request.recent_events)} events")
    if len(dense.values) != num * len(dense.names):
        raise Defect(f"{len(dense.values)} numbers of {num} candidates")

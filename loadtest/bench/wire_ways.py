"""Other ways to the same scores: in parts as they come, and by the tensors of the Open Inference Protocol."""

import struct
from collections.abc import Awaitable, Callable

import grpc.aio
import httpx
import orjson

from mfalcon.types import Ids
from proto import inference_pb2, ranking_pb2, ranking_pb2_grpc

INFER = "/inference.GRPCInferenceService/ModelInfer"
Ask = Callable[[], Awaitable[int]]
"""Returns the bytes of its answer."""


def other_ways(
    channel: grpc.aio.Channel, http: httpx.AsyncClient, user: str, candidates: Ids, top_k: int
) -> dict[str, Ask]:
    """By name: each ranks the candidates for the user."""
    stub = ranking_pb2_grpc.RankingStub(channel)
    request = ranking_pb2.RankRequest(user_id=user, candidates=candidates.tolist(), top_k=top_k)
    name, ids = struct.pack("<I", len(user)) + user.encode(), candidates.astype("<i8").tobytes()

    async def first_part() -> int:
        call = stub.RankStream(request)
        part = await call.read()
        call.cancel()
        assert isinstance(part, ranking_pb2.RankPart)
        return part.ByteSize()

    async def all_parts() -> int:
        return sum([part.ByteSize() async for part in stub.RankStream(request)])

    async def tensors_by_grpc() -> int:
        asked = inference_pb2.ModelInferRequest(parameters={"top_k": inference_pb2.InferParameter(int64_param=top_k)})
        for tensor, datatype, length in (("user_id", "BYTES", 1), ("candidate_ids", "INT64", len(candidates))):
            asked.inputs.add(name=tensor, datatype=datatype, shape=[length])
        asked.raw_input_contents.extend([name, ids])
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER)
        return len(await infer(asked.SerializeToString()))

    async def tensors_by_http() -> int:
        tensors = (("user_id", "BYTES", 1, name), ("candidate_ids", "INT64", len(candidates), ids))
        head = orjson.dumps(
            {
                "parameters": {"top_k": top_k, "binary_data_output": True},
                "inputs": [
                    {"name": tensor, "datatype": kind, "shape": [num], "parameters": {"binary_data_size": len(raw)}}
                    for tensor, kind, num, raw in tensors
                ],
            }
        )
        model = (await http.get("/v1/model")).json()["name"]
        headers = {"inference-header-content-length": str(len(head))}
        answer = await http.post(f"/v2/models/{model}/infer", content=head + name + ids, headers=headers)
        answer.raise_for_status()
        return len(answer.content)

    return {
        "gRPC, in parts: the first": first_part,
        "gRPC, in parts: all": all_parts,
        "gRPC, tensors": tensors_by_grpc,
        "HTTP, tensors as bytes": tensors_by_http,
    }

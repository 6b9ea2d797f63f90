"""A bad input and what its answer must hold, over either transport."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

from proto import ranking_pb2
from tests.server.harness import Clients

RANKING = "mfalcon.v1.Ranking"
JSON = {"content-type": "application/json"}
Batch = ranking_pb2.RankBatchResponse | ranking_pb2.AppendBatchResponse
BATCHES: Mapping[str, Callable[[bytes], Batch]] = {
    "RankBatch": ranking_pb2.RankBatchResponse.FromString,
    "AppendBatch": ranking_pb2.AppendBatchResponse.FromString,
}
"""Methods that answer each part by itself, and how their answers are read."""

INVALID = "INVALID_ARGUMENT"
TOO_LARGE = "RESOURCE_EXHAUSTED"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the name of a status, the number of an HTTP status (0 over gRPC), a message, a field. Of a batch
    that was answered it is what is told of its first part, and `part` says so.
    """

    code: str
    status: int
    message: str
    field: str | None = None
    part: bool = False


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """Bytes for a gRPC method, and what the answer must hold."""

    method: str
    shown: str
    message: bytes
    code: str
    says: str
    service: str = RANKING

    @property
    def call(self) -> str:
        return self.method

    async def send(self, running: Clients) -> Answer:
        call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
        call = running.channel.unary_stream(f"/{self.service}/{self.method}")
        try:
            told = [answer async for answer in call(self.message, timeout=60)]  # one, or the parts of a stream
        except grpc.aio.AioRpcError as error:
            return Answer(error.code().name, 0, error.details() or "")
        if self.method in BATCHES:
            failure = BATCHES[self.method](told[0]).outcomes[0].failure
            return Answer(failure.code or "OK", 0, failure.message, part=True)
        return Answer("OK", 0, "")


@dataclass(frozen=True, slots=True)
class HttpCase:
    """An HTTP request, and what the answer must hold."""

    verb: str
    path: str
    shown: str
    body: bytes
    status: int
    code: str
    says: str
    headers: tuple[tuple[str, str], ...] = tuple(JSON.items())
    chunked: bool = False

    @property
    def call(self) -> str:
        return f"{self.verb} {self.path}"

    async def send(self, running: Clients) -> Answer:
        content = in_chunks(self.body) if self.chunked else self.body
        reply = await running.http.request(self.verb, self.path, content=content, headers=list(self.headers))
        if reply.status_code == 200:
            return of_part(reply.json()["outcomes"][0]) if "outcomes" in reply.json() else Answer("OK", 200, "")
        assert reply.headers["content-type"] == "application/json"
        error = reply.json()["error"]
        if isinstance(error, str):  # of the Open Inference Protocol
            return Answer("", reply.status_code, error, error.partition(": ")[0])
        assert {"code", "message", "field"} <= set(error) <= {"code", "message", "field", "outcome"}
        return Answer(error["code"], reply.status_code, error["message"], error["field"])


Case = GrpcCase | HttpCase
Fields = dict[str, object]


def of_part(outcome: Mapping[str, dict[str, str]]) -> Answer:
    """What is told of a part of a batch."""
    failure = outcome.get("failure", {"code": "OK", "message": ""})
    return Answer(failure["code"], 200, failure["message"], failure.get("field"), part=True)


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    """A body without a length."""
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]

"""What is wrong with tensors is said as Rank says it, over both transports, and costs what the limits allow."""

import json
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import numpy as np
import pytest

from proto import inference_pb2 as pb
from server.oip.grpc_service import SERVICE
from tests.server.access.credentials import RIGHTS, bearer, one_of_each, token
from tests.server.harness import Running, serving
from tests.server.oip.asking import ITEMS, PRICE, RECENT, TIME, USER, binary_body, message

BAD: dict[str, tuple[Sequence[dict[str, Any]], dict[str, Any], str]] = {
    "no user": ([ITEMS], {}, "inputs.user_id: got None, must be given"),
    "no candidates": ([USER], {}, "inputs.candidate_ids: got None"),
    "a name that there is not": ([USER, ITEMS | {"name": "items"}], {}, "inputs[1].name: got 'items', must be user_id"),
    "twice": ([USER, USER, ITEMS], {}, "inputs[1].name: got 'user_id', must be a name that is given once"),
    "another datatype": ([USER, ITEMS | {"datatype": "FP32"}], {}, "inputs.candidate_ids.datatype: got 'FP32'"),
    "two dimensions": ([USER, ITEMS | {"shape": [1, 2]}], {}, "inputs.candidate_ids.shape: got [1, 2], must be one"),
    "too many": ([USER, ITEMS | {"shape": [100]}], {}, "inputs.candidate_ids.shape: got [100], must be one dimension"),
    "less than none": ([USER, ITEMS | {"shape": [-1]}], {}, "inputs.candidate_ids.shape: got [-1]"),
    "none": ([USER, ITEMS | {"shape": [0], "data": []}], {}, "candidates: got 0, must be 1 to 99 candidates"),
    "another count": ([USER, ITEMS | {"shape": [3]}], {}, "inputs.candidate_ids.data: got '2 elements', must be 3"),
    "no user in it": ([USER | {"shape": [0], "data": []}, ITEMS], {}, "inputs.user_id.shape: got [0], must be [1]"),
    "an empty user": ([USER | {"data": [""]}, ITEMS], {}, "user_id: got '', must be 1 to 256 bytes of UTF-8"),
    "a time to come": ([USER, ITEMS, TIME | {"data": [2**62]}], {}, "request_time_ms: got"),
    "events without times": ([USER, ITEMS, RECENT], {}, "inputs.recent_times_ms: got None, must be given"),
    "fewer times than events": (
        [USER, ITEMS, RECENT, {"name": "recent_times_ms", "datatype": "INT64", "shape": [0], "data": []}],
        {},
        "inputs.recent_times_ms.shape: got [0], must be [1], as of recent_item_ids",
    ),
    "no feature of the model": ([USER, ITEMS, PRICE | {"name": "features.x"}], {}, "features.names[0]: got 'x'"),
    "one number short": (
        [USER, ITEMS, PRICE | {"shape": [1], "data": [1]}],
        {},
        "inputs.features.price.shape: got [1]",
    ),
    "an unknown context": ([USER, ITEMS, TIME | {"name": "context.mood"}], {}, "context: got 'mood'"),
    "an unknown parameter": ([USER, ITEMS], {"priority": 1}, "parameters.priority: got 1, must be absent: there are"),
    "no truth": ([USER, ITEMS], {"recompute": 1}, "parameters.recompute: got 1, must be true or false"),
    "no time": ([USER, ITEMS], {"timeout": 0}, "parameters.timeout: got 0, must be 1 to 3600000000 (microseconds)"),
    "no number": ([USER, ITEMS], {"top_k": "2"}, "parameters.top_k: got '2', must be 0 to 4294967295"),
}


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving(max_candidates=99) as served:
        yield served


async def by_grpc(
    running: Running, request: bytes, method: str = "ModelInfer", *headers: str
) -> tuple[str, str, bytes]:
    """The code, the text and the answer of a call."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running.channel.unary_unary(f"/{SERVICE}/{method}")
    try:
        answer = await call(request, timeout=60, metadata=tuple(("authorization", each) for each in headers))
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or "", b""
    return "OK", "", answer


async def by_http(running: Running, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await running.http.post("/v2/models/fake/infer", content=body, headers=named)


async def test_it_is_said_by_both(running: Running) -> None:
    for case, (inputs, parameters, says) in BAD.items():
        code, text, _ = await by_grpc(running, message(inputs, parameters).SerializeToString())
        assert (code, text[: len(says)]) == ("INVALID_ARGUMENT", says), case
        answer = await by_http(running, json.dumps({"inputs": list(inputs), "parameters": parameters}).encode())
        assert (answer.status_code, answer.json()) == (422, {"error": text}), case
    assert not running.engine.requests


async def test_elements_of_json_and_of_bytes(running: Running) -> None:
    good = {"inputs": [USER, ITEMS, PRICE], "outputs": [{"name": "scores"}]}
    right = (await by_http(running, json.dumps(good).encode())).json()["outputs"][0]
    assert (right["shape"], right["datatype"]) == ([2], "FP32")
    for data, says in (
        ([1, True], "data[1]: got True"),
        ([1, "2"], "data[1]: got '2'"),
        ([1, 2**64], "data[1]: got 1.8"),
    ):
        body = json.dumps({"inputs": [USER, ITEMS | {"data": data}]}).encode()
        assert (await by_http(running, body)).json()["error"].startswith(f"inputs.candidate_ids.{says}")
    infinite = json.dumps({"inputs": [USER, ITEMS, PRICE | {"data": [1, 1e39]}]}).encode()
    assert "features.values[1]: got inf" in (await by_http(running, infinite)).json()["error"]

    raw = np.array([1, 2], dtype="<i8").tobytes()
    name = struct.pack("<I", 3) + b"ann"
    wanted = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "failed"}]
    head, tail = binary_body(name, raw, outputs=wanted)
    answer = await by_http(running, head + tail, inference_header_content_length=str(len(head)))
    num_json = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(answer.content[num_json:], "<f4").tolist() == pytest.approx(right["data"])
    assert json.loads(answer.content[:num_json])["outputs"][1]["data"] == []
    for tail, length, says in (
        (name + raw + b"x", len(head), "body: got '24 bytes behind the head', must be 23"),
        (name + raw[:-1], len(head), "inputs[1].parameters.binary_data_size: got 16, must be 0 to 15"),
        (b"\x09" + name[1:] + raw, len(head), "inputs.user_id: got 'an end in element 0'"),
        (b"\xff\xff\xff\xff" + name[4:] + raw, len(head), "inputs.user_id: got 'an end in element 0'"),
        (name[:-1] + b"\xff" + raw, len(head), "inputs.user_id[0]: got b'an\\xff', must be UTF-8"),
        (name + raw, -1, "inference-header-content-length: got '-1'"),
        (name + raw, 10**9, "inference-header-content-length: got '1000000000'"),
        (b"", 3, "body: got 'unexpected end of data', must be JSON"),
    ):
        answer = await by_http(running, head + tail, inference_header_content_length=str(length))
        assert (answer.status_code, answer.json()["error"][: len(says)]) == (422, says)
    compressed = await by_http(running, head, content_encoding="gzip")
    assert compressed.json()["error"].startswith("content-encoding: got 'gzip'")


async def test_megabytes_of_nothing_are_refused_before_they_are_parsed(running: Running) -> None:
    many = pb.ModelInferRequest(model_name="fake", inputs=[pb.ModelInferRequest.InferInputTensor()] * 1_000_000)
    empty_texts = pb.ModelInferRequest(model_name="fake")
    empty_texts.inputs.add().contents.bytes_contents.extend([b""] * 1_000_000)
    spread = pb.ModelInferRequest(model_name="fake")
    for _ in range(100):
        spread.inputs.add().contents.bytes_contents.extend([b""] * 100)
    zeros, shape = pb.ModelInferRequest(model_name="fake"), pb.ModelInferRequest(model_name="fake")
    zeros.inputs.add().contents.int64_contents.extend([0] * 1_000_000)
    shape.inputs.add().shape.extend([0] * 1_000_000)
    for request, says in (
        (spread.SerializeToString(), "inputs.contents: got more than"),
        (zeros.SerializeToString(), "inputs.contents: got more than"),
        (shape.SerializeToString(), "inputs.shape: got more than"),
        (many.SerializeToString(), "inputs: got more than"),
        (empty_texts.SerializeToString(), "inputs.contents: got more than"),
        (b"\xff" * 100, "inference.ModelInferRequest: got 100 bytes that are no such message"),
    ):
        code, text, _ = await by_grpc(running, request)
        assert (code, text[: len(says)]) == ("INVALID_ARGUMENT", says)
    mismatched = message([USER, ITEMS], {})
    mismatched.raw_input_contents.append(b"")
    assert (await by_grpc(running, mismatched.SerializeToString()))[1].startswith(
        "raw_input_contents: got 1, must be 2"
    )
    commas = b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}"
    assert "no legal request has more" in (await by_http(running, commas)).json()["error"]


async def test_one_of_many_faults_is_told_and_none_is_described_beside_it(running: Running) -> None:
    """Each costs microseconds, in a call of a library that lets nobody else run: 50,000 had all wait for seconds."""
    wrong: dict[str, list[int]] = {f"k{number}": [] for number in range(8_000)}
    known = dict(list(wrong.items())[:60])
    for body, says in (
        ({"inputs": [USER, ITEMS], "parameters": wrong}, "parameters: got 'an object', must be at most 64 parameters"),
        (
            {"inputs": [USER | {"parameters": known}] * 100},
            "inputs[0].parameters: got 'an object', must be true, false",
        ),
        ({"inputs": [USER, ITEMS | wrong]}, "inputs[1].k0: got 'a list', must be absent"),
        ({"inputs": [USER], "outputs": [{"name": "top"} | known] * 100}, "outputs[0].k0: got 'a list', must be absent"),
    ):
        answer = await by_http(running, json.dumps(body).encode())
        assert (answer.status_code, answer.json()["error"][: len(says)]) == (422, says)


async def test_what_is_long_is_neither_told_nor_given_back(running: Running) -> None:
    """A status of megabytes, as an answer of more than a client takes, never arrives."""
    for name in ("context." + "é" * 300, "features." + "x" * 1_000_000):
        named = [USER, ITEMS, {"name": name, "datatype": "INT64", "shape": [1, 1], "data": [1]}]
        code, text, _ = await by_grpc(running, message(named, {}).SerializeToString())
        assert (code, text) == ("INVALID_ARGUMENT", f"inputs[2].name: got {len(name)}, must be at most 256 characters")
        assert (await by_http(running, json.dumps({"inputs": named}).encode())).json() == {"error": text}
    asked = message([USER, ITEMS], {})
    asked.id = "x" * 4_190_000
    code, text, _ = await by_grpc(running, asked.SerializeToString())
    assert (code, text) == ("INVALID_ARGUMENT", "id: got 4190000, must be at most 1024 characters")
    answer = await by_http(running, json.dumps({"inputs": [USER, ITEMS], "id": asked.id}).encode())
    assert (answer.status_code, answer.json()) == (422, {"error": text})
    assert not running.engine.requests


async def test_a_version_and_a_model_that_are_not_served(running: Running) -> None:
    asked = json.dumps({"inputs": [USER, ITEMS]}).encode()
    version = (await running.http.get("/v2/models/fake")).json()["versions"][0]
    for path, status in (
        (f"fake/versions/{version}", 200),
        ("fake/versions/old", 404),
        ("nobody", 404),
    ):
        assert (await running.http.post(f"/v2/models/{path}/infer", content=asked)).status_code == status
        assert (await running.http.get(f"/v2/models/{path}")).status_code == status
        assert (await running.http.get(f"/v2/models/{path}/ready")).status_code == status
    old = await running.http.post("/v2/models/fake/versions/old/infer", content=asked)
    assert old.json() == {"error": f"version: got 'old', must be {version!r} or empty"}
    assert (await running.http.get("/v2/nowhere")).json() == {"error": "Not Found"}
    stale = pb.ModelReadyRequest(name="fake", version="old").SerializeToString()
    assert (await by_grpc(running, stale, "ModelReady"))[0] == "NOT_FOUND"


async def test_typed_elements_are_answered_so(running: Running) -> None:
    _, _, raw = await by_grpc(running, message([USER, ITEMS], {"top_k": 1}).SerializeToString())
    answer = pb.ModelInferResponse.FromString(raw)
    assert not answer.raw_output_contents
    assert [len(each.contents.fp32_contents) for each in answer.outputs[:3]] == [2, 2, 2]
    assert list(answer.outputs[3].contents.uint_contents) == [1]


async def test_it_is_ready_as_the_server_is(running: Running) -> None:
    running.engine.ready = False
    for path in ("health/ready", "models/fake/ready"):
        answer = await running.http.get(f"/v2/{path}")
        assert (answer.status_code, answer.json()) == (503, {"ready": False})
    assert (await running.http.get("/v2/health/live")).json() == {"live": True}
    for method in ("ServerReady", "ModelReady"):
        assert not pb.ModelReadyResponse.FromString((await by_grpc(running, b"\x0a\x04fake", method))[2]).ready


async def test_who_may_ask(tmp_path: Path) -> None:
    asked = message([USER, ITEMS], {}).SerializeToString()
    body = json.dumps({"inputs": [USER, ITEMS]}).encode()
    async with serving(tokens_file=one_of_each(tmp_path / "callers.toml")) as running:
        for path in ("health/live", "health/ready"):
            assert (await running.http.get(f"/v2/{path}")).status_code == 200
        for method in ("ServerLive", "ServerReady"):
            assert (await by_grpc(running, b"", method))[0] == "OK"
        for holder in ("", *RIGHTS):
            known = bearer(token(holder))
            code = "OK" if holder in ("rank", "admin") else "PERMISSION_DENIED" if holder else "UNAUTHENTICATED"
            status = {"OK": 200, "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401}[code]
            assert (await by_grpc(running, asked, "ModelInfer", known))[0] == code
            for method in ("ModelMetadata", "ModelReady", "ServerMetadata"):
                assert (await by_grpc(running, b"", method, known))[0] == code
            answer = await by_http(running, body, authorization=known)
            assert (answer.status_code, isinstance(answer.json().get("error", ""), str)) == (status, True)
            for path in ("", "/models/fake", "/models/fake/ready"):
                told = await running.http.get(f"/v2{path}", headers={"authorization": known})
                assert told.status_code == status

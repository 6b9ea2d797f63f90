"""A stock client of the Open Inference Protocol ranks over both transports, and is told what Rank tells."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from proto import inference_pb2, ranking_pb2
from tests.server.harness import serving

CANDIDATES = [5, 1, 3, 2**62 + 1]
ROOT = Path(__file__).parents[3]


async def asked(*arguments: str) -> dict[str, Any]:
    """What the stock client was told."""
    command = (sys.executable, "-m", "tests.server.oip.stock_client", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, complained = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, complained.decode()
    told: dict[str, Any] = json.loads(said)
    return told


async def test_it_ranks_over_both_transports() -> None:
    async with serving() as running:
        told = await asked(running.addresses.grpc, running.addresses.http, "fake")
        right = await running.stub.Rank(
            ranking_pb2.RankRequest(
                user_id="ann",
                candidates=CANDIDATES,
                top_k=2,
                recent_events=[
                    ranking_pb2.Event(item_id=7, actions=1, time_ms=1_000),
                    ranking_pb2.Event(item_id=8, actions=2, time_ms=2_000),
                ],
            )
        )
        asked_by_tensors = running.engine.requests[0]
    like, rating = right.task_scores[:4], right.task_scores[4:]
    for name in ("grpc", "http"):
        by = told[name]
        assert (by["live"], by["ready"], by["model_ready"]) == (True, True, True)
        assert by["server"]["name"] == "mfalcon"
        assert by["numbers"] == by["texts"]
        assert by["numbers"] == {
            "scores": pytest.approx(list(right.scores)),
            "task_scores.like": pytest.approx(list(like)),
            "task_scores.rating": pytest.approx(list(rating)),
            "top": list(right.top),
            "unknown": list(right.unknown),
            "failed": [],
        }
        assert by["wanted"] == [[], pytest.approx(list(right.scores))]
        assert (by["response"]["model_name"], by["response"]["model_version"]) == ("fake", right.model_version)
        assert by["response"]["id"] == "r1"
        assert "history_version" in by["response"]["parameters"]
        assert by["refused"][1] == "user_id: got '', must be 1 to 256 bytes of UTF-8"
        inputs = {each["name"]: (each["datatype"], [int(n) for n in each["shape"]]) for each in by["model"]["inputs"]}
        assert inputs["candidate_ids"] == ("INT64", [-1])
        assert inputs["context.gender"] == ("INT64", [1])
        assert [each["name"] for each in by["model"]["outputs"]][:2] == ["scores", "task_scores.like"]
    assert (told["grpc"]["refused"][0], told["http"]["refused"][0]) == ("StatusCode.INVALID_ARGUMENT", "422")
    assert asked_by_tensors.dense.values.tolist() == [1, 2, 3, 4]
    assert dict(asked_by_tensors.context) == {"gender": 1}
    assert asked_by_tensors.recent_events["time_ms"].tolist() == [1_000, 2_000]

    stock = told["numbers"]
    for each in inference_pb2.DESCRIPTOR.message_types_by_name.values():
        for message in (each, *each.nested_types):
            ours = {field.name: field.number for field in message.fields}
            assert ours.items() <= stock[message.full_name].items(), message.full_name

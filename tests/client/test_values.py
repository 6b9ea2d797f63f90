"""What no request should hold and no answer should say, whoever is at fault."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from mfalcon_client import EVENT_DTYPE, Event, InvalidArgument, Retry, ServerFailure, Unavailable
from proto import ranking_pb2 as pb
from tests.client.either import MakeClient
from tests.client.scripted import RANKED, fails, raw, says, scripted

PATIENT_S = 60.0
TWO = np.zeros(2, dtype=EVENT_DTYPE)


def some_events() -> Iterator[Event]:
    yield Event(1, 2)


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("rank", np.ma.array([1, 2], mask=[False, True])),
        ("append_events", np.ma.array(TWO, mask=[False, True])),
        ("append_events", some_events()),
    ],
    ids=["masked candidates", "masked events", "generator"],
)
async def test_what_cannot_be_sent_whole_is_not_sent(make: MakeClient, method: str, value: Any) -> None:
    with scripted(says(RANKED)) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            with pytest.raises(InvalidArgument, match=r"masked|generator"):
                await getattr(client, method)("ann", value)
    assert not script.asked


@pytest.mark.parametrize("text", ["", "x" * 257, "a\0", "\ud800"])
async def test_a_text_that_is_no_id_is_not_sent(make: MakeClient, text: str) -> None:
    with scripted(says(RANKED)) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            with pytest.raises(InvalidArgument, match=r"candidates\[1\]: "):
                await client.rank("ann", ["a", text])
            with pytest.raises(InvalidArgument, match="events: "):
                await client.append_events("ann", [Event(text, 2)])
    assert not script.asked


@pytest.mark.parametrize(
    "answer",
    [
        pb.RankResponse(),
        pb.RankResponse(scores=[1], tasks=["like"], task_scores=[1]),
        pb.RankResponse(scores=[1, 2, 3], tasks=["like"], task_scores=[1, 2, 3]),
        pb.RankResponse(scores=[1, 2], tasks=["like"], task_scores=[1, 2], top=[2]),
        pb.RankResponse(scores=[1, 2], tasks=["like"], task_scores=[1, 2], failed=[0, 7]),
    ],
    ids=["empty", "fewer", "more", "top", "failed"],
)
async def test_scores_of_other_candidates_are_no_answer(make: MakeClient, answer: pb.RankResponse) -> None:
    with scripted(says(answer)) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            with pytest.raises(ServerFailure, match="cannot be read"):
                await client.rank("ann", [1, 2])


async def test_fewer_scores_are_an_answer_where_they_are_allowed(make: MakeClient) -> None:
    fewer = says(pb.RankResponse(scores=[1], tasks=["like"], task_scores=[1], num_scored=1))
    with scripted(fewer, says(pb.RankResponse())) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            assert (await client.rank("ann", [1, 2], allow_partial=True)).num_scored == 1
            with pytest.raises(ServerFailure, match="0 scores of 2"):
                await client.rank("ann", [1, 2], allow_partial=True)


async def test_a_history_shorter_than_what_was_appended_is_no_answer(make: MakeClient) -> None:
    with scripted(says(pb.AppendEventsResponse())) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            with pytest.raises(ServerFailure, match="0 events") as failure:
                await client.append_events("ann", TWO)
    assert failure.value.outcome_unknown


async def test_events_count_as_they_were_sent(make: MakeClient) -> None:
    """Whatever their owner does to the list while the call is under way."""
    events = [Event(1, 2), Event(3, 4)]

    def clear(*_: object) -> bytes:
        events.clear()
        return fails("UNAVAILABLE")(*_)  # type: ignore[arg-type]

    with scripted(clear, says(pb.AppendEventsResponse(history_len=1))) as script:
        async with make(script.address, timeout_s=PATIENT_S) as client:
            with pytest.raises(ServerFailure, match="1 events, 2 appended"):
                await client.append_events("ann", events, expected_len=3)


async def test_a_time_may_be_a_number_of_numpy(make: MakeClient) -> None:
    """A clock that is read as float32 is minutes wrong."""
    with scripted(says(RANKED)) as script:
        async with make(script.address, timeout_s=np.float32(PATIENT_S)) as client:
            assert (await client.rank("ann", [1, 2])).num_scored == 2


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1, 1e9])
async def test_no_wait_is_without_an_end(make: MakeClient, seconds: float) -> None:
    async with make("127.0.0.1:1") as client:
        with pytest.raises(InvalidArgument, match="timeout_s"):
            await asyncio.wait_for(client.wait_ready(seconds), 30)


async def test_a_server_that_ends_is_unavailable_whatever_grpc_calls_it(make: MakeClient) -> None:
    with scripted(fails("CANCELLED"), says(RANKED)) as script:
        async with make(script.address, timeout_s=PATIENT_S, retry=Retry(attempts=1)) as client:
            with pytest.raises(Unavailable):
                await client.append_events("ann", TWO)
    with scripted(fails("CANCELLED"), raw(b"")) as script:
        async with make(script.address) as client:
            await client.wait_ready(PATIENT_S)
    assert len(script.asked) == 2


class VaultError(grpc.RpcError):
    """What a token that is fetched by gRPC may raise."""


async def test_what_a_token_raises_is_the_callers(make: MakeClient) -> None:
    def fail() -> str:
        raise VaultError

    with scripted(says(RANKED)) as script:
        async with make(script.address, token=fail, token_in_clear=True) as client:
            with pytest.raises(VaultError):
                await client.append_events("ann", TWO)
    assert not script.asked

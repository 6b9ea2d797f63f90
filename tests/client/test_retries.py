"""What is asked again, and what never is: against a server that follows a script."""

import asyncio
from typing import Any

import numpy as np
import pytest

from mfalcon_client import (
    EVENT_DTYPE,
    Appended,
    AsyncClient,
    ClientError,
    Closed,
    DeadlineExceeded,
    Overloaded,
    Retry,
    ServerFailure,
    Unavailable,
    VersionConflict,
)
from mfalcon_client.retry import PUSHBACK, Failure
from proto import ranking_pb2 as pb
from tests.client.either import MakeClient
from tests.client.scripted import RANKED, Scripted, Step, fails, never, raw, running, says, scripted

PATIENT_S = 60.0
QUICK = Retry(first_wait_s=0.001, most_wait_s=0.002)
TWO = np.zeros(2, dtype=EVENT_DTYPE)
AWAY = fails("UNAVAILABLE")
VERSION = bytes(range(16))
OLD_WRITTEN = says(pb.AppendEventsResponse(history_len=5))
"""The answer of a server of a release that keeps no append ids."""
WRITTEN = says(pb.AppendEventsResponse(history_len=5, version=VERSION))
FOUND = says(pb.AppendEventsResponse(history_len=5, version=VERSION, was_written=True))
DONE = Appended(5, version=VERSION)
CALLS: dict[str, tuple[Any, ...]] = {
    # method: its arguments
    "rank": ("ann", [1, 2]),
    "interests": ("ann",),
    "prefill": ("ann",),
    "get_history": ("ann",),
    "delete_user": ("ann",),
    "get_model": (),
    "list_models": (),
}


def refused(milliseconds: int) -> Step:
    """A refusal that says when to come again."""
    return fails("RESOURCE_EXHAUSTED", grpc_retry_pushback_ms=str(milliseconds))


def conflict(history_len: int, **trailers: str) -> Step:
    return fails("FAILED_PRECONDITION", mfalcon_history_len=str(history_len), **trailers)


NEW_CONFLICT = conflict(5, mfalcon_history_version=VERSION.hex(), mfalcon_outcome="nothing-written")


async def ask(make: MakeClient, script: Scripted, method: str = "rank", *args: Any, **options: Any) -> Any:
    """One call by a client of its own."""
    async with make(script.address, retry=QUICK, timeout_s=PATIENT_S) as client:
        return await getattr(client, method)(*(args or CALLS[method]), **options)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("step", [AWAY, fails("CANCELLED"), refused(1)], ids=["away", "cancelled", "refused"])
async def test_what_done_twice_is_done_once_is_repeated(make: MakeClient, method: str, step: Step) -> None:
    answer = says(RANKED) if method == "rank" else raw(b"")
    with scripted(step, step, answer) as script:
        await ask(make, script, method)
    assert len(script.asked) == 3
    assert len({asked.request for asked in script.asked}) == 1


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED"])
async def test_other_failures_are_final(make: MakeClient, code: str) -> None:
    with scripted(fails(code, "why"), says(RANKED)) as script, pytest.raises(ClientError) as failure:
        await ask(make, script)
    assert (failure.value.code, failure.value.details) == (code, "why")
    assert len(script.asked) == 1


async def test_attempts_have_an_end(make: MakeClient) -> None:
    with scripted(AWAY) as script, pytest.raises(Unavailable) as failure:
        await ask(make, script)
    assert len(script.asked) == QUICK.attempts
    assert not failure.value.outcome_unknown


@pytest.mark.parametrize("pushback", [None, -1, 3_600_000], ids=["none", "never", "too late"])
async def test_a_refusal_without_a_time_before_the_deadline_is_final(make: MakeClient, pushback: int | None) -> None:
    step = fails("RESOURCE_EXHAUSTED") if pushback is None else refused(pushback)
    with scripted(step) as script, pytest.raises(Overloaded) as failure:
        await ask(make, script)
    assert len(script.asked) == 1
    assert failure.value.retry_after_s == (3_600 if pushback == 3_600_000 else None)


NO_ANSWER = ["UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN"]


@pytest.mark.parametrize("code", [*NO_ANSWER, "DEADLINE_EXCEEDED"])
@pytest.mark.parametrize("first", [OLD_WRITTEN, None], ids=["an older server", "nothing known"])
async def test_an_append_is_sent_once_where_ids_may_not_be_kept(
    make: MakeClient, code: str, first: Step | None
) -> None:
    steps = [first] if first else []
    with scripted(*steps, fails(code), WRITTEN) as script:
        async with make(script.address, retry=QUICK, timeout_s=PATIENT_S) as client:
            if first:
                assert await client.append_events("ann", TWO) == Appended(5)
            with pytest.raises(ClientError) as failure:
                await client.append_events("ann", TWO)
    assert len(script.asked) == len(steps) + 1
    assert failure.value.outcome_unknown


def append_id(script: Scripted, number: int) -> str:
    return pb.AppendEventsRequest.FromString(script.asked[number].request).append_id


@pytest.mark.parametrize("code", NO_ANSWER)
@pytest.mark.parametrize("was_written", [False, True])
async def test_an_append_finds_out_where_ids_are_kept(make: MakeClient, code: str, was_written: bool) -> None:
    with scripted(WRITTEN, fails(code), FOUND if was_written else WRITTEN) as script:
        async with make(script.address, retry=QUICK, timeout_s=PATIENT_S) as client:
            await client.append_events("ann", TWO)
            done = await client.append_events("ann", TWO)
    assert done == Appended(5, was_found=was_written, version=VERSION)
    assert len(script.asked) == 3
    assert append_id(script, 0) != append_id(script, 1) == append_id(script, 2) != ""


async def test_ids_are_doubted_after_an_answer_without_a_version(make: MakeClient) -> None:
    """A replica of the older release among newer ones."""
    with scripted(WRITTEN, OLD_WRITTEN, WRITTEN, AWAY) as script:
        async with make(script.address, retry=QUICK, timeout_s=PATIENT_S) as client:
            for _ in range(3):
                await client.append_events("ann", TWO)
            with pytest.raises(Unavailable) as failure:
                await client.append_events("ann", TWO)
    assert len(script.asked) == 4
    assert failure.value.outcome_unknown


async def test_a_rank_tells_that_ids_are_kept(make: MakeClient) -> None:
    ranked = pb.RankResponse.FromString(RANKED.SerializeToString())
    ranked.history_version = VERSION
    with scripted(says(ranked), AWAY, WRITTEN) as script:
        async with make(script.address, retry=QUICK, timeout_s=PATIENT_S) as client:
            await client.rank("ann", [1, 2])
            assert await client.append_events("ann", TWO) == DONE


async def test_the_callers_own_name_is_sent(make: MakeClient) -> None:
    with scripted(FOUND) as script:
        done = await ask(make, script, "append_events", "ann", TWO, append_id="order-7")
    assert append_id(script, 0) == "order-7"
    assert done.was_found


async def test_an_append_that_was_refused_was_not_written(make: MakeClient) -> None:
    with scripted(refused(1), WRITTEN) as script:
        assert await ask(make, script, "append_events", "ann", TWO) == DONE
    with scripted(fails("RESOURCE_EXHAUSTED")) as script, pytest.raises(Overloaded) as failure:
        await ask(make, script, "append_events", "ann", TWO)
    assert not failure.value.outcome_unknown


@pytest.mark.parametrize("code", NO_ANSWER)
async def test_an_append_with_a_length_is_repeated_to_any_server(make: MakeClient, code: str) -> None:
    with scripted(fails(code), OLD_WRITTEN) as script:
        assert await ask(make, script, "append_events", "ann", TWO, expected_len=3) == Appended(5)
    assert len(script.asked) == 2


async def test_a_lost_append_is_not_taken_for_anothers(make: MakeClient) -> None:
    """Ours had no answer and was not written. Another writer's made the history as long as ours would have."""
    with scripted(AWAY, NEW_CONFLICT) as script, pytest.raises(VersionConflict) as failure:
        await ask(make, script, "append_events", "ann", TWO, expected_len=3)
    assert (failure.value.history_len, failure.value.history_version) == (5, VERSION)
    assert not failure.value.outcome_unknown
    with scripted(AWAY, conflict(5)) as script, pytest.raises(VersionConflict) as failure:
        await ask(make, script, "append_events", "ann", TWO, expected_len=3)
    assert failure.value.outcome_unknown, "a server that keeps no ids cannot know"


@pytest.mark.parametrize("steps", [(conflict(5),), (refused(1), conflict(5)), (AWAY, conflict(4)), (AWAY, conflict(6))])
async def test_another_length_is_a_conflict(make: MakeClient, steps: tuple[Step, ...]) -> None:
    with scripted(*steps) as script, pytest.raises(VersionConflict) as failure:
        await ask(make, script, "append_events", "ann", TWO, expected_len=3)
    assert failure.value.history_len in (4, 5, 6)
    assert failure.value.outcome_unknown == (steps[0] is AWAY)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED"])
@pytest.mark.parametrize(("told", "unknown"), [("nothing-written", False), ("unknown", True)])
async def test_a_server_says_whether_it_wrote(make: MakeClient, code: str, told: str, unknown: bool) -> None:
    with scripted(fails(code, mfalcon_outcome=told)) as script, pytest.raises(ClientError) as failure:
        await ask(make, script, "append_events", "ann", TWO)
    assert failure.value.outcome_unknown == unknown
    with (
        scripted(fails("UNAVAILABLE"), fails(code, mfalcon_outcome="nothing-written")) as script,
        pytest.raises(ClientError) as failure,
    ):
        await ask(make, script, "append_events", "ann", TWO, expected_len=3)
    assert failure.value.outcome_unknown, "the first attempt may be written still"


async def test_an_older_server_that_did_not_look_at_the_version_is_told_apart(make: MakeClient) -> None:
    with scripted(OLD_WRITTEN) as script, pytest.raises(ServerFailure, match="without a look at expected_version"):
        await ask(make, script, "append_events", "ann", TWO, expected_version=VERSION)


ELSEWHERE = {"x_rank_retry": "elsewhere"}


async def test_nothing_was_done_where_another_may_answer(make: MakeClient) -> None:
    with scripted(fails("UNAVAILABLE", **ELSEWHERE), WRITTEN) as script:
        assert await ask(make, script, "append_events", "ann", TWO) == DONE
    with scripted(fails("UNAVAILABLE", **ELSEWHERE)) as script, pytest.raises(Unavailable) as failure:
        await ask(make, script, "append_events", "ann", TWO)
    assert len(script.asked) == QUICK.attempts
    assert not failure.value.outcome_unknown


async def test_a_busy_replica_is_waited_for_unless_there_is_another(make: MakeClient) -> None:
    busy = fails("RESOURCE_EXHAUSTED", grpc_retry_pushback_ms="3600000", **ELSEWHERE)
    for spread in ("user", "turn"):
        with scripted(busy, says(RANKED)) as script:
            async with make([script.address], spread=spread, retry=QUICK, timeout_s=PATIENT_S) as client:
                if spread == "turn":
                    await client.rank("ann", [1, 2])
                else:
                    with pytest.raises(Overloaded):
                        await client.rank("ann", [1, 2])
        assert len(script.asked) == 1 + (spread == "turn")


async def test_an_append_that_never_ends_is_not_known(make: MakeClient) -> None:
    with scripted(AWAY) as script, pytest.raises(Unavailable) as failure:
        await ask(make, script, "append_events", "ann", TWO, expected_len=3)
    assert failure.value.outcome_unknown
    assert len(script.asked) == QUICK.attempts


async def test_many_failures_end_the_repetitions(make: MakeClient) -> None:
    with scripted(AWAY) as script:
        async with make(script.address, retry=Retry(first_wait_s=0, most_wait_s=0, budget=10)) as client:
            for _ in range(8):
                with pytest.raises(Unavailable):
                    await client.rank("ann", [1, 2])
    assert len(script.asked) == 11  # four for the first call, two for the second, then one for each


async def test_the_deadline_ends_a_call_and_its_repetitions(make: MakeClient) -> None:
    with scripted(never) as script:
        async with make(script.address, timeout_s=0.2) as client:
            with pytest.raises(DeadlineExceeded):
                await client.rank("ann", [1, 2])
            with pytest.raises(DeadlineExceeded):
                await client.rank("ann", [1, 2], timeout_s=0.1)
    assert len(script.asked) <= 2


async def test_a_server_that_dies_half_way_and_comes_back(make: MakeClient) -> None:
    patient = Retry(attempts=10_000, first_wait_s=0.01, most_wait_s=0.01, budget=1_000_000)
    with scripted(never) as script:
        client = make(script.address, retry=patient, timeout_s=PATIENT_S)
        calls = [asyncio.create_task(client.rank("ann", [1, 2])) for _ in range(3)]
        await script.wait_for(3)
        append = asyncio.create_task(client.append_events("ann", TWO, expected_len=3))
        await script.wait_for(1)
    answers = {"Rank": RANKED, "AppendEvents": pb.AppendEventsResponse(history_len=5)}
    back = Scripted([lambda _, asked, __: answers[asked.method].SerializeToString()])
    with running(back, script.address):
        assert [(await call).history_len for call in calls] == [7, 7, 7]
        assert await append == Appended(5)
        async with client:
            pass


async def test_every_call_of_a_client_that_is_closed_is_told(make: MakeClient) -> None:
    waits = Retry(first_wait_s=1_000, most_wait_s=1_000)
    with scripted(never, never, never, AWAY) as script:
        client = make(script.address, retry=waits, timeout_s=10_000.0)
        async with client:
            calls = [asyncio.create_task(client.rank("ann", [1, 2])) for _ in range(4)]
            calls.append(asyncio.create_task(client.append_events("ann", TWO, expected_len=3)))
            await script.wait_for(5)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [Closed] * 5
        assert isinstance(ends[-1], Closed) and ends[-1].outcome_unknown
        with pytest.raises(Closed) as failure:
            await client.append_events("ann", TWO)
        assert not failure.value.outcome_unknown  # it was never sent


async def test_a_rank_that_is_asked_twice_is_told_too(make: MakeClient) -> None:
    with scripted(never) as script:
        async with make(script.address, hedge_after_s=0.0, timeout_s=PATIENT_S) as client:
            call = asyncio.create_task(client.rank("ann", [1, 2]))
            await script.wait_for(2)
        with pytest.raises(Closed):
            await call


@pytest.mark.parametrize("told", ["", "soon", "--5", "1e3", "9" * 400, "٣"])
def test_a_time_that_is_no_number_is_none(told: str) -> None:
    answer = Failure("RESOURCE_EXHAUSTED", "no", [(PUSHBACK, told)])
    assert answer.number(PUSHBACK) is None
    error = answer.error(outcome_unknown=False)
    assert isinstance(error, Overloaded) and error.retry_after_s is None


async def test_an_answer_that_cannot_be_read_is_an_error(make: MakeClient) -> None:
    skewed = pb.RankResponse(scores=[1, 2], tasks=["like", "rating"], task_scores=[1, 2, 3])
    for answer in (b"\xff\xff", skewed.SerializeToString()):
        with scripted(raw(answer)) as script, pytest.raises(ServerFailure, match="cannot be read"):
            await ask(make, script)
        assert len(script.asked) == 1


async def test_nobody_listens(make: MakeClient) -> None:
    with scripted(AWAY) as script:
        pass
    with pytest.raises(Unavailable):
        await ask(make, script)


async def test_a_task_that_is_cancelled_takes_its_call_back() -> None:
    with scripted(never) as script:
        async with AsyncClient(script.address) as client:
            task = asyncio.create_task(client.rank("ann", [1, 2]))
            await script.wait_for(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(script.ended.acquire, timeout=PATIENT_S)


@pytest.mark.parametrize(
    "bad", [{"attempts": 0}, {"budget": 0}, {"first_wait_s": -1}, {"first_wait_s": 2, "most_wait_s": 1}]
)
def test_settings_that_make_no_sense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(**bad)

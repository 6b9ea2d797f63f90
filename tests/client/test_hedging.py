"""A rank without an answer is asked once more, elsewhere, where its caller wants that."""

import asyncio

import pytest

from mfalcon_client import RANK_KEY, ClientError
from tests.client.either import MakeClient
from tests.client.scripted import RANKED, fails, never, says, scripted
from tests.client.test_retries import PATIENT_S, QUICK


async def test_the_second_answer_counts(make: MakeClient) -> None:
    with scripted(never, says(RANKED)) as script:
        async with make(script.address, hedge_after_s=0.01, timeout_s=PATIENT_S) as client:
            assert (await client.rank("ann", [1, 2])).history_len == 7
            assert await asyncio.to_thread(script.ended.acquire, timeout=PATIENT_S)  # the first one was taken back
    one, other = script.asked  # in either order: a busy server may begin with the second
    assert one.request == other.request
    assert (RANK_KEY in one.metadata) != (RANK_KEY in other.metadata)  # a balancer may choose another replica


async def test_a_hedge_bears_the_token_of_its_call(make: MakeClient) -> None:
    """A source of tokens that fails meanwhile takes no answer away."""
    tokens = ["only"]

    def token() -> str:
        if not tokens:
            raise LookupError("no token now")
        return tokens.pop()

    with scripted(never, says(RANKED)) as script:
        options = {"token": token, "token_in_clear": True, "hedge_after_s": 0.01}
        async with make(script.address, timeout_s=PATIENT_S, **options) as client:
            assert (await client.rank("ann", [1, 2])).history_len == 7
    assert [asked.metadata["authorization"] for asked in script.asked] == ["Bearer only"] * 2


async def test_an_answer_in_time_is_asked_for_once(make: MakeClient) -> None:
    with scripted(says(RANKED)) as script:
        async with make(script.address, hedge_after_s=PATIENT_S) as client:
            await client.rank("ann", [1, 2])
            await client.rank("ann", [1, 2])
    assert len(script.asked) == 2


async def test_a_failure_before_it_is_repeated_as_ever(make: MakeClient) -> None:
    with scripted(fails("UNAVAILABLE"), says(RANKED)) as script:
        async with make(script.address, hedge_after_s=PATIENT_S, retry=QUICK) as client:
            await client.rank("ann", [1, 2])
    assert len(script.asked) == 2


async def test_both_fail(make: MakeClient) -> None:
    late = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first(*args: object) -> bytes:
        asyncio.run_coroutine_threadsafe(late.wait(), loop).result(PATIENT_S)
        return fails("NOT_FOUND", "the first")(*args)  # type: ignore[arg-type]

    def second(*args: object) -> bytes:
        loop.call_soon_threadsafe(late.set)
        return fails("NOT_FOUND", "the second")(*args)  # type: ignore[arg-type]

    with scripted(first, second) as script:
        async with make(script.address, hedge_after_s=0.01, timeout_s=PATIENT_S) as client:
            with pytest.raises(ClientError, match="NOT_FOUND"):
                await client.rank("ann", [1, 2])
    assert len(script.asked) == 2


async def test_nothing_else_is_hedged(make: MakeClient) -> None:
    with scripted(never) as script:
        async with make(script.address, hedge_after_s=0.0, timeout_s=0.1) as client:
            with pytest.raises(ClientError):
                await client.prefill("ann")
    assert len(script.asked) <= 1

"""Appends of several users in one call, whose caller may leave at any time."""

import asyncio

import pytest

from mfalcon.engine.append_batch import AT_ONCE, append_each
from mfalcon.types import Append, Appended, UserAppend
from tests.small import random_events


@pytest.mark.parametrize("num_turns", range(5))
async def test_a_caller_that_leaves_ends_what_has_not_begun(num_turns: int) -> None:
    """Nothing is left behind, an append that was made and never awaited least of all: warnings are errors."""
    begun, ended = [], []

    async def append(user_id: str, append: Append, deadline: float | None) -> Appended:
        begun.append(user_id)
        await asyncio.sleep(0)
        ended.append(user_id)
        return Appended(1, b"")

    appends = [UserAppend(str(user), Append(random_events(1, user))) for user in range(3 * AT_ONCE)]
    call = asyncio.create_task(append_each(append, appends, None))
    for _ in range(num_turns):
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(begun) < len(appends)
    seen = len(ended)
    await asyncio.sleep(0.01)
    assert len(ended) == seen

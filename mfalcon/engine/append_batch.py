"""Appends of many users in one call: each is done by itself, and what it raises is its outcome."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from mfalcon.errors import EngineFailure, MFalconError
from mfalcon.types import Append, Appended, AppendOutcome, UserAppend

_log = logging.getLogger(__name__)

AT_ONCE = 16
"""Appends to a log in this process hold the event loop for so many at a time: about a millisecond. A log elsewhere is
asked for so many at once."""


async def append_each(
    append: Callable[[str, Append, float | None], Awaitable[Appended]],
    appends: Sequence[UserAppend],
    deadline: float | None,
) -> list[AppendOutcome]:
    """What became of each append, in their order. append: does one of them, as `Engine.append_events`."""
    outcomes: list[AppendOutcome] = []
    for start in range(0, len(appends), AT_ONCE):
        part = appends[start : start + AT_ONCE]
        told = await asyncio.gather(*(_outcome(partial(append, each.user_id, each.append, deadline)) for each in part))
        outcomes += told
    return outcomes


async def _outcome(append: Callable[[], Awaitable[Appended]]) -> AppendOutcome:
    """Of an append that begins only now: who has left before has asked for nothing."""
    try:
        return await append()
    except MFalconError as error:
        return error
    except Exception:  # noqa: BLE001 (the step's edge: the others have their own outcomes)
        _log.exception("an append of a batch failed")
        return EngineFailure("the server failed on this append; its log has the cause", may_be_done=True)

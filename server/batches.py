"""The ranks of one batch: some at once, so that a batch of hundreds is in the schedule what its neighbours are."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from mfalcon.errors import DeadlineExceeded, EngineFailure, InvalidInput, MFalconError
from mfalcon.types import ModelRank, RankOutcome, RankResult
from server import arrivals

_log = logging.getLogger(__name__)

RANKED_AT_ONCE: Final = 32
"""Of a batch. As many fill a GPU's largest computation; more would only wait in the queue, where the schedule must keep
what it has promised to each of them, and has to refuse who comes later.
"""


async def rank_each(
    ranks: Sequence[ModelRank | InvalidInput], rank: Callable[[ModelRank, float], Awaitable[RankResult]], due: float
) -> list[RankOutcome]:
    """What becomes of each, in their order: what `rank` returns or raises for it and the seconds that it has; one that
    could not be read is its own outcome. due: when the call must be answered, a reading of `time.monotonic()`.
    """
    room = asyncio.Semaphore(RANKED_AT_ONCE)

    async def outcome(each: ModelRank | InvalidInput) -> RankOutcome:
        if isinstance(each, InvalidInput):
            return each
        arrivals.begin_part()
        async with room:
            left = due - time.monotonic()
            if left <= 0:
                return DeadlineExceeded("the deadline passed while others of the batch were ranked")
            try:
                return await rank(each, left)
            except MFalconError as error:
                return error.with_traceback(None)  # its frames hold the request
            except Exception:  # noqa: BLE001 (the edge of a rank: what fails one of them fails no other)
                _log.exception("a rank of a batch failed")
                return EngineFailure("the server failed on this request; its log has the cause")

    return await asyncio.gather(*map(outcome, ranks))

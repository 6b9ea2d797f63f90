"""What a replica does before it leaves: Redis holds the states that it used last, so that those who come after do not
begin cold.
"""

import asyncio
import logging
import time
from collections.abc import Iterable

from mfalcon.engine.ranker import LoadedRanker

_log = logging.getLogger(__name__)


async def hand_over(rankers: Iterable[LoadedRanker], seconds: float, most_bytes: int) -> int:
    """Bounded by seconds and by bytes written of each model, whatever Redis does; returns the states that it held, of
    models that came to an end.
    """
    began, num_held = time.monotonic(), 0
    try:
        async with asyncio.timeout(seconds):
            for ranker in rankers:
                num_held += await ranker.hand_over(most_bytes)
    except TimeoutError:
        _log.warning("hand-over: not done within %g s", seconds)
    _log.info("hand-over: %d states are in Redis, after %.2f s", num_held, time.monotonic() - began)
    return num_held

"""Waiting in turns of the event loop: one that was held up has not looked at what came meanwhile."""

import asyncio
import time
from typing import Final

TURNS: Final = 10


async def in_turns(seconds: float) -> float:
    """Wait for so long, in short turns: a loop that is held up for all that time still reads what came meanwhile.

    Returns the seconds that it took.
    """
    began = time.monotonic()
    for _ in range(TURNS):
        await asyncio.sleep(seconds / TURNS)
    return time.monotonic() - began

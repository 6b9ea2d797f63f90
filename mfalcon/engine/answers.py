"""The way back from the device: answers of its threads reach the event loop, many with one wake-up.

To wake a loop costs a system call and a change of threads, which is more than all else that an answer costs; and the
answers of one step come together.
"""

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Answers:
    """Hands the results of futures that any thread resolves to those who await them on one event loop."""

    def __init__(self) -> None:
        self._answered: deque[asyncio.Future[None]] = deque()
        self._woken = False

    async def of(self, future: "Future[T]") -> T:
        """The result of the future; whoever leaves before cancels it."""
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        future.add_done_callback(partial(self._hand_over, loop, told))
        try:
            await told
            return future.result()
        except asyncio.CancelledError:
            future.cancel()
            raise
        finally:
            del told, future  # an error holds this frame: if that held the error too, only the GC would free it

    def _hand_over(self, loop: asyncio.AbstractEventLoop, told: "asyncio.Future[None]", _: "Future[Any]") -> None:
        """On the thread that resolved a future."""
        self._answered.append(told)
        if not self._woken and not loop.is_closed():
            self._woken = True
            loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._woken = False  # first: what is appended from now on wakes the loop again, needed or not
        while self._answered:
            told = self._answered.popleft()
            if not told.done():
                told.set_result(None)

"""An event loop whose clock jumps: what waits a second takes none, and no machine is too slow for a test."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Clock(selectors.DefaultSelector):
    """Instead of waiting, it is later."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; without it the time is up."""
        assert timeout is not None, "nothing is ever going to happen"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own, on such a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        """Seconds of the clock."""
        return self.clock.now

    def stall(self, seconds: float) -> None:
        """The loop is busy with something else for so long."""
        self.clock.now += seconds


def virtual_loop() -> VirtualLoop:
    """The running one."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


def in_virtual_time(test: Coroutine[Any, Any, Answer]) -> Answer:
    """Run it on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test)

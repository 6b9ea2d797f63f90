"""How busy a device is, in words for other processes: enough to refuse at once what must come too late."""

import time
from dataclasses import dataclass

from mfalcon.errors import Overloaded


@dataclass(frozen=True, slots=True)
class Load:
    """Times are readings of `time.monotonic()`, which on Linux is one clock for all processes of a machine.

    free_at: when a short job that waits for all others of its kind would probably begin. last_due: the latest deadline
    of those; a job that is due later waits for all of them. is_full: no more jobs may wait. utilisation: the part of
    about the last second in which it computed, in hundredths.
    """

    free_at: float = 0.0
    last_due: float = 0.0
    is_full: bool = False
    utilisation: float = 0.0

    def admit(self, deadline: float | None) -> None:
        """Raise Overloaded for a job that would probably be refused by the device itself. What is due before others may
        go before them, so that is for the device to judge.
        """
        now = time.monotonic()
        if self.is_full:
            raise Overloaded("the queue is full; try again later")
        if deadline is None or deadline < self.last_due or deadline <= now:  # what is late already is answered as that
            return
        if deadline < self.free_at:
            raise Overloaded(
                f"deadline: got {1e3 * (deadline - now):.0f} ms, must be at least {1e3 * (self.free_at - now):.0f} ms "
                "behind the other requests; try again later",
                retry_after_s=self.free_at - deadline,
            )

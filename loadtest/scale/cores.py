"""A machine's cores in simulated time: work that runs at once shares them equally, and none has more than one.

So a replica with a core of its own is never slowed, and four replicas on two cores are as slow as they really are.
"""

import heapq
from itertools import count

from simpy import Environment, Event


class Cores:
    """Processor sharing."""

    def __init__(self, env: Environment, num_cores: float) -> None:
        assert num_cores > 0
        self._env = env
        self._num_cores = num_cores
        self._finish: list[tuple[float, int, Event]] = []
        self._order = count()
        self._each_had = 0.0  # core seconds that whoever runs all the time has had since the beginning
        self._seen_at = env.now
        self._timer = 0
        self._spent_s = 0.0

    @property
    def spent_s(self) -> float:
        """Core seconds until now: over the time, how many cores were busy."""
        self._catch_up()
        return self._spent_s

    def run(self, seconds: float) -> Event:
        """An event that happens when so many core seconds have been spent on it."""
        self._catch_up()
        done = self._env.event()
        heapq.heappush(self._finish, (self._each_had + seconds, next(self._order), done))
        self._plan()
        return done

    @property
    def _rate(self) -> float:
        return min(1.0, self._num_cores / len(self._finish)) if self._finish else 0.0

    def _catch_up(self) -> None:
        passed = (self._env.now - self._seen_at) * self._rate
        self._each_had += passed
        self._spent_s += passed * len(self._finish)
        self._seen_at = self._env.now

    def _plan(self) -> None:
        """Wake when the next one is done; what was planned before counts no more."""
        self._timer += 1
        if self._finish:
            timer, left = self._timer, max(0.0, self._finish[0][0] - self._each_had)
            self._env.timeout(left / self._rate).callbacks.append(lambda _: self._wake(timer))

    def _wake(self, timer: int) -> None:
        if timer != self._timer:
            return
        self._catch_up()
        first = self._finish[0][0]  # by definition; the clock's rounding may leave a little
        while self._finish and self._finish[0][0] <= first:
            heapq.heappop(self._finish)[2].succeed()
        self._plan()

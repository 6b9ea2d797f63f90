"""A device that is as slow as a test wants: it does the least at once, and stops at a number of scored candidates."""

import time
from collections.abc import Sequence

import pytest

from mfalcon.engine.job import RankJob
from mfalcon.engine.runner import Answer, Runner

LEAST_S = 1e-9
"""Seconds that nothing fits into: each slice is the least that is done at all."""
LONGER_AND_LONGER_S = (1, 4, 16, 60)
"""Deadlines of a request that is asked again with the next one where even the first slice, or the reply, was late."""


class SlowDevice:
    """Every engine's, while a test has it. stops_at: so many scores of a request are all that its caller will get."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stops_at: int | None = None
        right = Runner.advance

        def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
            for job in jobs:
                num_scored = 0 if job.progress is None else job.progress.num_scored
                if self.stops_at is not None and num_scored >= self.stops_at:
                    while not job.future.done():
                        time.sleep(0.001)
            return right(runner, jobs, min(seconds, LEAST_S))

        monkeypatch.setattr(Runner, "advance", advance)

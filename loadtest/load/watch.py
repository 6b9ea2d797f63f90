"""Asks a server for its figures, every few seconds of a run."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from loadtest.load.watched import GOODPUT, Figure, Watched, series_of
from mfalcon.errors import CallFailed

Sample: TypeAlias = Mapping[tuple[Figure, str], float]
"""Figures, and whose they are."""
Ask: TypeAlias = Callable[[], Awaitable[Sample]]
"""For a sample of now; raises CallFailed where there is none."""

_EVERY_S, _FEWEST = 5.0, 100
"""The pause between samples, shorter where a run would have fewer samples than this."""


class Watch:
    """The samples of one run of so many seconds."""

    def __init__(self, ask: Ask, seconds: float) -> None:
        self._ask = ask
        self._pause_s = min(_EVERY_S, seconds / _FEWEST)
        self._times: list[float] = []
        self._samples: list[Sample] = []
        self._missed = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sample = await self._ask()
            except CallFailed:
                self._missed += 1
            else:
                self._times.append(loop.time())
                self._samples.append(sample)
            await asyncio.sleep(self._pause_s)

    def result(self, in_time: Mapping[str, Sequence[float]]) -> Watched:
        """What was seen. in_time: by class, the times at which its answers came that were right and in time."""
        seconds = tuple(at - self._times[0] for at in self._times)
        values: dict[tuple[Figure, str], list[float | None]] = {
            (GOODPUT, name): self._goodput(ends) for name, ends in in_time.items()
        }
        for key in dict.fromkeys(key for sample in self._samples for key in sample):
            values[key] = [sample.get(key) for sample in self._samples]
        series = (series_of(*key, seconds, each) for key, each in values.items())
        return Watched(seconds, self._missed, tuple(one for one in series if one is not None))

    def _goodput(self, ends: Sequence[float]) -> list[float | None]:
        """A second, since the sample before."""
        if len(self._times) < 2:
            return [None] * len(self._times)
        counts, _ = np.histogram(ends, self._times)
        return [None, *(counts / np.diff(self._times)).tolist()]

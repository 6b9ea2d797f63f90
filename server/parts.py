"""The scores of one stream on their way from the engine to its caller: in order, none twice, none left out.

What the engine tells is kept until it is written: at most the scores of one answer, as long as its caller does not
read. The engine waits for nobody. Parts that were lost on the way, or never told, are made of the answer.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Final

from mfalcon.types import Positions, RankPart, RankResult, TellPart

MAX_CANDIDATES: Final = 2_048
"""Of a part that is written: with some hundred tasks still less than gRPC's clients take at once."""

Write = Callable[[RankPart], Awaitable[None]]
"""Sends a part to the caller, and waits while he does not read."""


async def in_parts(rank: Callable[[TellPart], Coroutine[None, None, RankResult]], write: Write) -> RankResult:
    """The answer, all of whose scores are written. What `rank` raises is raised behind the parts that it told."""
    told = _Told()
    ranking = asyncio.ensure_future(rank(told.add))
    ranking.add_done_callback(lambda task: task.cancelled() or task.exception())  # heard, also where nobody asks
    ranking.add_done_callback(lambda _: told.wake())
    try:
        while not ranking.done():
            await told.changed()
            await told.write(write)
        await told.write(write)
        result = await ranking
        await told.write_rest(result, write)
        return result
    finally:
        ranking.cancel()


class _Told:
    """What was told of one request."""

    def __init__(self) -> None:
        self._parts = deque[RankPart]()
        self._next = 0
        self._changed = asyncio.Event()

    def add(self, part: RankPart) -> None:
        """The engine tells this."""
        if part.first == self._next:  # else one before it is lost, and the answer has them all
            self._next += len(part.scores)
            self._parts.append(part)
            self._changed.set()

    def wake(self) -> None:
        """Nothing more will be told."""
        self._changed.set()

    async def changed(self) -> None:
        """Return when something was told since the last time, or `wake` was called."""
        await self._changed.wait()
        self._changed.clear()

    async def write(self, write: Write) -> None:
        """Write what has come."""
        while self._parts:
            for part in _cut(self._parts.popleft()):
                await write(part)

    async def write_rest(self, result: RankResult, write: Write) -> None:
        """Write what the answer has more than was told."""
        for part in _cut(_part(result, self._next, result.num_scored)):
            await write(part)


def _cut(part: RankPart) -> Iterator[RankPart]:
    """The same in parts that are small enough; none of no scores."""
    num = len(part.scores)
    if 0 < num <= MAX_CANDIDATES:
        yield part
        return
    for start in range(0, num, MAX_CANDIDATES):
        stop = min(num, start + MAX_CANDIDATES)
        yield RankPart(
            first=part.first + start,
            scores=part.scores[start:stop],
            task_scores=part.task_scores[:, start:stop],
            unknown=_within(part.unknown, part.first + start, part.first + stop),
            failed=_within(part.failed, part.first + start, part.first + stop),
            tasks=part.tasks,
            model_version=part.model_version,
        )


def _part(result: RankResult, first: int, stop: int) -> RankPart:
    return RankPart(
        first=first,
        scores=result.scores[first:stop],
        task_scores=result.task_scores[:, first:stop],
        unknown=_within(result.unknown, first, stop),
        failed=_within(result.failed, first, stop),
        tasks=result.tasks,
        model_version=result.model_version,
    )


def _within(positions: Positions, first: int, stop: int) -> Positions:
    return positions[(positions >= first) & (positions < stop)]

"""A replica that a test holds in its hand: another engine, which answers, is slow, is frozen, is away or refuses."""

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from mfalcon.engine.engine import Engine
from mfalcon.errors import MFalconError, NotReady, Overloaded
from mfalcon.types import CacheInfo, ModelInfo, RankRequest, RankResult

Mode = Literal["well", "slow", "frozen", "away", "overloaded"]


@dataclass
class Elsewhere:
    """Satisfies `RemoteModel`. slow: ranks take for ever, and nothing else does."""

    engine: Engine
    model: str = "b"
    address: str = "replica:1"
    mode: Mode = "well"
    asked: list[RankRequest] = field(default_factory=list)
    num_waiting: int = 0
    most_waiting: int = 0
    closed: bool = False
    changes: dict[str, object] = field(default_factory=dict)
    """What of an answer is another than the engine's."""
    info: ModelInfo | None = None
    """What it says of itself, where that is not what it serves."""

    async def describe(self, timeout_s: float) -> ModelInfo:
        await self._pass(is_rank=False)
        return self.info or self.engine.model

    async def rank(self, request: RankRequest, timeout_s: float) -> RankResult:
        self.asked.append(request)
        await self._pass(is_rank=True)
        result = await self.engine.rank(request, time.monotonic() + timeout_s)
        return replace(result, **self.changes)  # type: ignore[arg-type]

    async def prefill(self, user_id: str, timeout_s: float) -> CacheInfo:
        await self._pass(is_rank=True)
        return await self.engine.prefill(user_id, time.monotonic() + timeout_s)

    async def close(self) -> None:
        self.closed = True

    async def _pass(self, *, is_rank: bool) -> None:
        errors: dict[Mode, MFalconError] = {"away": NotReady("nobody listens")}
        if is_rank:
            errors["overloaded"] = Overloaded("the queue is full")
        if (error := errors.get(self.mode)) is not None:
            raise error
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        try:
            while self.mode == "frozen" or (self.mode == "slow" and is_rank):  # noqa: ASYNC110 (a mode has no event)
                await asyncio.sleep(0.01)
        finally:
            self.num_waiting -= 1

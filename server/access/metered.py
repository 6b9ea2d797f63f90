"""The engine, asked by callers with an account."""

from collections.abc import Sequence

from mfalcon.interests import Interests, InterestsRequest
from mfalcon.load import Load
from mfalcon.types import (
    Append,
    Appended,
    AppendOutcome,
    CacheInfo,
    HistoryPage,
    HistoryRequest,
    Items,
    ItemsRequest,
    ModelInfo,
    RankRequest,
    RankResult,
    TellPart,
    UserAppend,
)
from server import arrivals
from server.access.quota import Ledger
from server.ranking_engine import RankingEngine


class MeteredEngine:
    """Satisfies `server.ranking_engine.RankingEngine`: charges whoever this task answers, then asks the engine."""

    def __init__(self, engine: RankingEngine, ledger: Ledger) -> None:
        self._engine = engine
        self._ledger = ledger

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, the default one first."""
        return self._engine.models

    @property
    def ready(self) -> bool:
        """Warm and not closing."""
        return self._engine.ready

    @property
    def load(self) -> Load:
        """How busy it is."""
        return self._engine.load

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str,
        tell: TellPart | None = None,
    ) -> RankResult:
        """See `RankingEngine`."""
        wish = request.retrieve
        num = len(request.candidates) if wish is None else wish.num_items + len(wish.conditions)
        with self._ledger.charged(arrivals.current().caller, num):
            return await self._engine.rank(request, deadline, model, tell)

    async def interests(self, request: InterestsRequest, deadline: float | None, model: str) -> Interests:
        """See `RankingEngine`: a condition costs what a candidate does."""
        with self._ledger.charged(arrivals.current().caller, len(request.conditions)):
            return await self._engine.interests(request, deadline, model)

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """See `RankingEngine`."""
        with self._ledger.charged(arrivals.current().caller):
            return await self._engine.append_events(user_id, append, deadline)

    async def append_batch(self, appends: Sequence[UserAppend], deadline: float | None) -> list[AppendOutcome]:
        """See `RankingEngine`. A batch is one request."""
        with self._ledger.charged(arrivals.current().caller):
            return await self._engine.append_batch(appends, deadline)

    async def get_history(self, request: HistoryRequest, deadline: float | None) -> HistoryPage:
        """See `RankingEngine`."""
        with self._ledger.charged(arrivals.current().caller):
            return await self._engine.get_history(request, deadline)

    async def items(self, request: ItemsRequest) -> Items:
        """See `RankingEngine`."""
        with self._ledger.charged(arrivals.current().caller):
            return await self._engine.items(request)

    async def prefill(
        self,
        user_id: str,
        deadline: float | None,
        model: str,
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        """See `RankingEngine`."""
        with self._ledger.charged(arrivals.current().caller, len(conditions)):
            return await self._engine.prefill(user_id, deadline, model, conditions, request_time_ms)

    async def delete_user(self, user_id: str, deadline: float | None) -> None:
        """See `RankingEngine`."""
        with self._ledger.charged(arrivals.current().caller):
            await self._engine.delete_user(user_id, deadline)

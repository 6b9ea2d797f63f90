"""What the handler needs of an engine: the one of this process, or another process's by `server/frontends`."""

from collections.abc import Sequence
from typing import Protocol

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


class RankingEngine(Protocol):
    """What the handler needs of an engine. A deadline is a reading of `time.monotonic()`.

    Every method may raise the errors that are answers: Overloaded, DeadlineExceeded, ShuttingDown, StorageUnavailable
    and EngineFailure.
    Cancelling an await drops the work that has not begun.
    """

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, the default one first."""
        ...

    @property
    def ready(self) -> bool:
        """Warm and not closing."""
        ...

    @property
    def load(self) -> Load:
        """How busy it is."""
        ...

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str,
        tell: TellPart | None = None,
    ) -> RankResult:
        """Score the candidates by a model of this name, all finite. InvalidInput when recent events are older than the
        log. tell: is called with scores as they come, in order, if they come in parts; the answer has all of them.
        """
        ...

    async def interests(self, request: InterestsRequest, deadline: float | None, model: str) -> Interests:
        """A user's interests by a model of this name, which has conditions; errors as of `rank`."""
        ...

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """Write to the log. HistoryMismatch, or InvalidInput when older than the log."""
        ...

    async def append_batch(self, appends: Sequence[UserAppend], deadline: float | None) -> list[AppendOutcome]:
        """Do appends of different users, each by itself."""
        ...

    async def get_history(self, request: HistoryRequest, deadline: float | None) -> HistoryPage:
        """Events of a history. HistoryMismatch when it is not the expected one."""
        ...

    async def items(self, request: ItemsRequest) -> Items:
        """Items of a model of this name, with their titles."""
        ...

    async def prefill(
        self,
        user_id: str,
        deadline: float | None,
        model: str,
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        """Encode the user's history now, by a model of this name, and compute interests ahead that it has."""
        ...

    async def delete_user(self, user_id: str, deadline: float | None) -> None:
        """Forget the history and every KV state."""
        ...

"""The engine as a front-end sees it: the other end of a pipe to the process that computes."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import TypeVar

import zmq

from mfalcon.errors import NotReady, Overloaded, ShuttingDown, StorageUnavailable
from mfalcon.interests import Interests, InterestsRequest
from mfalcon.load import Load
from mfalcon.scope import current
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
from server.frontends import answers, questions, rankings, wire
from server.frontends.carried import carried
from server.frontends.link import Link
from server.frontends.message import Message, note
from server.handler import LOADING

PATIENCE = 5
"""Beats after which an engine's process that was not heard counts as frozen: new calls would only wait for it."""
SCRAPE_SECONDS = 5.0
"""Longest wait for metrics: whoever asks for them will ask again."""

T = TypeVar("T", bound=Message)


class RemoteEngine:
    """Satisfies `server.ranking_engine.RankingEngine`. Lives on one event loop."""

    def __init__(self, endpoint: str, name: str, heard: Callable[[answers.Status], None]) -> None:
        """endpoint: where an `EngineServer` listens. name: of this front-end, and of no other. heard: is called with
        every status.
        """
        self.status = answers.Status(0, LOADING, ready=False, models=(), load=Load())
        self._heard = heard
        self._waiting: dict[int, asyncio.Future[answers.Answer]] = {}
        self._told: dict[int, TellPart] = {}
        """Who is told parts of an answer, by call."""
        self._calls = count(1)
        self._gone: str | None = None
        self._unheard = 0
        """Beats of our own since the engine's process was heard. If we stand still, no time passes."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link = Link(self._context, zmq.DEALER, self._receive)
        self._link.socket.routing_id = name.encode()
        self._link.socket.connect(endpoint)

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Every served model, the default one first."""
        return self.status.models

    @property
    def ready(self) -> bool:
        """Warm and not closing, as far as was heard, and heard of late."""
        return self.status.ready and self._gone is None and self._unheard < PATIENCE

    @property
    def load(self) -> Load:
        """How busy it is, as far as was heard."""
        return self.status.load

    async def rank(
        self,
        request: RankRequest,
        deadline: float | None,
        model: str = "",
        tell: TellPart | None = None,
    ) -> RankResult:
        """See `RankingEngine`."""
        self.load.admit(deadline)
        call = next(self._calls)
        question = questions.Rank.of(call, request, deadline, model, carried(), in_parts=tell is not None)
        if tell is not None:
            self._told[call] = tell
        try:
            return (await self._ask(question, rankings.Ranked)).result()
        finally:
            self._told.pop(call, None)

    async def interests(self, request: InterestsRequest, deadline: float | None, model: str = "") -> Interests:
        """See `RankingEngine`."""
        self.load.admit(deadline)
        question = questions.AskInterests.of(next(self._calls), request, deadline, model, carried())
        return (await self._ask(question, rankings.Interested)).interests()

    async def append_events(self, user_id: str, append: Append, deadline: float | None) -> Appended:
        """See `RankingEngine`."""
        question = questions.AppendEvents.of(next(self._calls), user_id, append, deadline, carried())
        return (await self._ask(question, answers.Written)).told

    async def append_batch(self, appends: Sequence[UserAppend], deadline: float | None) -> list[AppendOutcome]:
        """See `RankingEngine`."""
        question = questions.AppendBatch.of(next(self._calls), appends, deadline, carried())
        return (await self._ask(question, answers.WrittenEach)).outcomes()

    async def get_history(self, request: HistoryRequest, deadline: float | None) -> HistoryPage:
        """See `RankingEngine`."""
        question = questions.GetHistory(next(self._calls), request, deadline, carried())
        return (await self._ask(question, answers.Page)).page()

    async def items(self, request: ItemsRequest) -> Items:
        """See `RankingEngine`."""
        question = questions.GetItems.of(next(self._calls), request, carried())
        return (await self._ask(question, answers.Listed)).items()

    async def prefill(
        self,
        user_id: str,
        deadline: float | None,
        model: str = "",
        conditions: Sequence[str] = (),
        request_time_ms: int = 0,
    ) -> CacheInfo:
        """See `RankingEngine`."""
        self.load.admit(deadline)
        asked = user_id, deadline, model, tuple(conditions), request_time_ms
        question = questions.Prefill(next(self._calls), *asked, carried())
        return (await self._ask(question, answers.Prefilled)).cache

    async def delete_user(self, user_id: str, deadline: float | None) -> None:
        """See `RankingEngine`."""
        await self._ask(questions.DeleteUser(next(self._calls), user_id, deadline, carried()), answers.Deleted)

    async def scrape(self, *, open_metrics: bool = False) -> bytes:
        """The metrics of all processes of the server."""
        try:
            async with asyncio.timeout(SCRAPE_SECONDS):
                return (await self._ask(questions.Scrape(next(self._calls), open_metrics), answers.Scraped)).text
        except TimeoutError as error:
            raise NotReady("the engine's process does not answer") from error

    def say_listening(self) -> None:
        """Tell the engine's process that callers come here from now on; it tells its status in turn."""
        self._link.send(wire.encode(questions.Hello(0)))

    def beat(self) -> None:
        """Tell the engine's process that we live; to be called every `BEAT_SECONDS`, by which its own silence is told
        too.
        """
        self._unheard += 1
        self._link.send(wire.encode(questions.Alive(0)))

    def say_serving(self) -> None:
        """Tell the engine's process that requests are answered from now on."""
        self._link.send(wire.encode(questions.Serving(0)))

    def lose(self, why: str) -> None:
        """The engine's process has ended: nobody is answered by it any more."""
        self._gone = why
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(StorageUnavailable(f"{why}; it may have done this call", may_be_done=True))

    def close(self) -> None:
        """Hang up."""
        self._link.close()
        self._context.destroy(linger=0)

    async def _ask(self, question: questions.Question, kind: type[T]) -> T:
        if self._gone is not None:
            raise ShuttingDown(f"{self._gone}; ask another one")
        if self._unheard >= PATIENCE:
            raise NotReady("the engine's process does not answer; ask another one")
        if self._link.is_full:
            raise Overloaded("the engine's process does not keep up; try again later")
        self._link.send(wire.encode(question))
        waiting: asyncio.Future[answers.Answer] = asyncio.get_running_loop().create_future()
        self._waiting[question.call] = waiting
        try:
            answer = await waiting
        except asyncio.CancelledError:
            self._link.send(wire.encode(questions.Cancel(question.call)))
            raise
        finally:
            del self._waiting[question.call]
        if isinstance(answer, rankings.Ranked | answers.Failed):
            note(current(), answer.notes)
        if isinstance(answer, answers.Failed):
            raise answer.error()
        assert isinstance(answer, kind)
        return answer

    def _receive(self, messages: Sequence[bytes]) -> None:
        self._unheard = 0
        for answer in map(wire.decode_answer, messages):
            if isinstance(answer, answers.Status):
                self.status = answer
                self._heard(answer)
                continue
            if isinstance(answer, rankings.Part):
                if (tell := self._told.get(answer.call)) is not None:
                    tell(answer.part())
                continue
            waiting = self._waiting.get(answer.call)
            if waiting is not None and not waiting.done():  # else its caller has left meanwhile
                waiting.set_result(answer)

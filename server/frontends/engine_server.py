"""The engine's end of the pipes: what front-ends ask is answered by the one engine, and its status is told to all."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq

from mfalcon.errors import EngineFailure, MFalconError, NotReady
from mfalcon.load import Load
from mfalcon.scope import current
from mfalcon.types import RankPart
from server.frontends import answers, questions, rankings, wire
from server.frontends.carried import carry_on
from server.frontends.link import MOST_WAITING, Link
from server.frontends.message import notes_of
from server.handler import LOADING, WAITING
from server.logs import SELDOM
from server.ranking_engine import RankingEngine

logger = logging.getLogger(__name__)

STATUS_SECONDS = 0.02
"""Time after which a change of the status is told."""


class EngineServer:
    """Lives on one event loop, the engine's."""

    def __init__(
        self,
        endpoint: str,
        met: Callable[[str], None] = lambda name: None,
        serving: Callable[[str], None] = lambda name: None,
        frozen: Callable[[str], None] = lambda name: None,
        scrape: Callable[[bool], bytes] = lambda open_metrics: b"",
        most_waiting: int = MOST_WAITING,
        patience_s: float = 0.0,
    ) -> None:
        """endpoint: where it listens for `RemoteEngine`s. met, serving: are called with the name of each that has come,
        and of each that answers requests; frozen: of each that was not heard for `patience_s`, once; never if that is
        0. scrape: shows the metrics, as OpenMetrics if told so, in a thread. most_waiting: messages that wait for one
        that does not read; what is more is dropped.
        """
        self._met, self._serving, self._frozen, self._scrape = met, serving, frozen, scrape
        self._patience = math.ceil(patience_s / STATUS_SECONDS)
        self._unheard: dict[bytes, int] = {}
        """By name of the front-end: turns of our own since it was heard. If we stand still, no time passes."""
        self._engine: RankingEngine | None = None
        self._phase: str = LOADING
        self._calls: dict[bytes, dict[int, asyncio.Task[None]]] = {}
        """By name of the front-end."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._link = Link(self._context, zmq.ROUTER, self._receive, most_waiting)
        self._link.socket.bind(endpoint)
        self._told, self._told_at = self._status(), time.monotonic()
        self._telling = asyncio.create_task(self._tell_changes())

    @property
    def num_calls(self) -> int:
        """Calls that have no answer yet."""
        return sum(map(len, self._calls.values()))

    @property
    def status(self) -> str:
        """What the engine's process does, in a word or two."""
        return self._phase

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._engine is not None and self._engine.ready

    def wait_for_redis(self) -> None:
        """Say from now on that this is what an engine waits for."""
        self._phase = WAITING

    def serve(self, engine: RankingEngine) -> None:
        """Answer with an engine from now on."""
        self._engine = engine
        self._phase = wire.SERVING
        self._tell()

    def forget(self, name: str) -> None:
        """A front-end has ended: nobody waits for its calls any more."""
        self._unheard.pop(name.encode(), None)
        for task in self._calls.pop(name.encode(), {}).values():
            task.cancel()

    async def close(self) -> None:
        """Hang up, and cancel what is left."""
        tasks = [self._telling, *(task for calls in self._calls.values() for task in calls.values())]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._link.close()
        self._context.destroy(linger=0)

    def _receive(self, frames: Sequence[bytes]) -> None:
        name, *messages = frames
        if name in self._unheard:
            self._unheard[name] = 0
        for message in messages:
            try:
                question = wire.decode_question(message)
            except (msgspec.MsgspecError, ValueError):  # the other messages that came with it are other callers'
                logger.error("a front-end sent a message that is none of ours", extra=SELDOM)
                continue
            self._take(name, question)

    def _take(self, name: bytes, question: questions.Question) -> None:
        if isinstance(question, questions.Hello):
            self._calls[name], self._unheard[name] = {}, 0
            self._link.send(wire.encode(self._status()), name)
            self._met(name.decode())
            return
        calls = self._calls.get(name)
        if calls is None:  # it has ended since it said this
            return
        match question:
            case questions.Serving():
                self._serving(name.decode())
            case questions.Alive():
                pass  # as is every message
            case questions.Cancel():
                if (left := calls.get(question.call)) is not None:
                    left.cancel()
            case _:
                task = calls[question.call] = asyncio.create_task(self._answer(name, question))
                task.add_done_callback(lambda _: calls.pop(question.call, None))

    async def _answer(self, name: bytes, question: questions.Call) -> None:
        if not isinstance(question, questions.Scrape):
            carry_on(question.trace)
        try:
            answer: answers.Answer = await self._ask(name, question)
        except MFalconError as error:
            answer = answers.Failed.of(question.call, error)
            answer.notes = notes_of(current())
        except Exception:
            logger.exception("%s failed", type(question).__name__)
            writes = isinstance(question, questions.AppendEvents | questions.AppendBatch | questions.DeleteUser)
            failure = EngineFailure("the server failed on this request; its log has the cause", may_be_done=writes)
            answer = answers.Failed.of(question.call, failure)
        self._link.send(wire.encode(answer), name)

    async def _ask(self, name: bytes, question: questions.Call) -> answers.Answer:
        engine, call = self._engine, question.call
        if isinstance(question, questions.Scrape):
            return answers.Scraped(call, await asyncio.to_thread(self._scrape, question.open_metrics))
        if engine is None:
            raise NotReady(f"the server is still {self._phase}; ask another one")
        answer: answers.Answer
        match question:
            case questions.Rank():
                tell = partial(self._tell_part, name, call) if question.in_parts else None
                result = await engine.rank(question.request(), question.deadline, question.model, tell)
                answer = rankings.Ranked.of(call, result)
                answer.notes = notes_of(current())
            case questions.AskInterests():
                found = await engine.interests(question.request(), question.deadline, question.model)
                answer = rankings.Interested.of(call, found)
            case questions.AppendEvents():
                told = await engine.append_events(question.user_id, question.append(), question.deadline)
                answer = answers.Written(call, told)
            case questions.AppendBatch():
                answer = answers.WrittenEach.of(call, await engine.append_batch(question.appends(), question.deadline))
            case questions.GetHistory(_, request, deadline):
                answer = answers.Page.of(call, await engine.get_history(request, deadline))
            case questions.GetItems():
                answer = answers.Listed.of(call, await engine.items(question.request()))
            case questions.Prefill(_, user_id, deadline, model, conditions, time_ms):
                cache = await engine.prefill(user_id, deadline, model, conditions, time_ms)
                answer = answers.Prefilled(call, cache)
            case questions.DeleteUser(_, user_id, deadline):
                await engine.delete_user(user_id, deadline)
                answer = answers.Deleted(call)
        return answer

    def _tell_part(self, name: bytes, call: int, part: RankPart) -> None:
        if call in self._calls.get(name, {}):
            self._link.send(wire.encode(rankings.Part.of(call, part)), name)

    def _status(self) -> answers.Status:
        engine = self._engine
        if engine is None:
            return answers.Status(0, self._phase, ready=False, models=(), load=Load())
        return answers.Status(0, self._phase, engine.ready, engine.models, engine.load)

    def _tell(self) -> None:
        self._told, self._told_at = self._status(), time.monotonic()
        message = wire.encode(self._told)
        for name in self._calls:
            self._link.send(message, name)

    async def _tell_changes(self) -> None:
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            if self._status() != self._told or time.monotonic() - self._told_at > wire.BEAT_SECONDS:
                self._tell()
            for name in self._unheard:
                self._unheard[name] += 1
                if self._unheard[name] == self._patience:
                    self._frozen(name.decode())

"""A language model behind an OpenAI-compatible endpoint, asked for an order of items and trusted with nothing else.

It may be slow, dead, wrong or hostile. So it has a thread and an event loop of its own, on which names are looked up
and answers are read; whoever waits for it waits on another loop, until a time of his own and no longer. An answer is
cut off where it is longer or in more pieces than any that is wanted, redirects are not followed, and what fails, or is
none of the orders that were asked for, has a reason from one small list.
"""

import asyncio
import contextlib
import logging
import ssl
import threading
from collections.abc import AsyncGenerator, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import orjson

from mfalcon.errors import ConfigError
from mfalcon.rerank.circuit import Circuit
from mfalcon.rerank.prompt import ACCURACY, DIVERSITY, Item, Messages, NoPermutation, messages, permutation
from mfalcon.types import RerankSkipped

_log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_ANSWER_BYTES = 256 << 10
MAX_ANSWER_CHUNKS = 1_024
"""Of an answer that is not streamed; a byte at a time it would keep its thread busy for long."""
TOKENS_OF_AN_ANSWER, TOKENS_OF_A_NUMBER = 64, 6


@dataclass(frozen=True, slots=True)
class LanguageModelOptions:
    """url: of the API, up to and with /v1. key: sent as a bearer token. timeout_s: of both passes together.
    concurrency: requests that may wait for it at once.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 2.0
    concurrency: int = 8


class Skipped(Exception):
    """There is no order. reason: one of those that `RankResult.rerank_skipped` has."""

    def __init__(self, reason: RerankSkipped, why: str = "") -> None:
        super().__init__(why or reason)
        self.reason: RerankSkipped = reason


class LanguageModel:
    """Its methods belong to one event loop; the thread is its own."""

    def __init__(self, options: LanguageModelOptions) -> None:
        """Starts the thread, and connects to nothing yet. Raises ConfigError without the packages of the extra, and for
        a url or model that no request can carry.
        """
        try:
            import httpx  # noqa: PLC0415 an optional dependency
        except ImportError as error:
            raise ConfigError("llm_url: needs httpx: install mfalcon with the extra llm") from error
        try:
            httpx.URL(options.url).host.encode()
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ConfigError(f"llm_url: got {options.url!r}, must be an address: {error}") from error
        try:
            options.model.encode()
        except UnicodeError as error:
            raise ConfigError(f"llm_model: got {options.model!r}, must be UTF-8") from error
        self.options = options
        self._slots = threading.BoundedSemaphore(options.concurrency)
        self._circuit = Circuit()
        self._witness: asyncio.Task[None] | None = None
        self._num_late = 0
        limits = httpx.Limits(max_connections=options.concurrency)
        self._errors = (httpx.HTTPError, httpx.InvalidURL)
        tls = ssl.create_default_context()
        self._client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False, verify=tls)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mfalcon-llm", daemon=True)
        self._thread.start()

    async def order(self, history: Sequence[Item], candidates: Sequence[Item], seconds: float) -> list[int]:
        """Positions of the candidates as the model orders them. seconds: for both passes; more than `timeout_s` is
        that. Raises Skipped; whoever is cancelled ends the call.
        """
        if not self._circuit.may_call():
            raise Skipped("unavailable")
        if not self._slots.acquire(blocking=False):
            self._circuit.abandoned()
            raise Skipped("busy")
        asking = self._on_thread(self._two_passes(history, candidates))
        asking.add_done_callback(lambda _: self._slots.release())
        answer = asyncio.wrap_future(asking)
        try:
            await asyncio.wait((answer,), timeout=min(seconds, self.options.timeout_s))
        except BaseException:
            answer.cancel()
            self._circuit.abandoned()
            raise
        if answer.done():
            return self._ended(answer)
        left_s = self.options.timeout_s - seconds  # of a call whose caller has less time than that
        if left_s <= 0:
            answer.cancel()
            self._failed("no answer in time")
        elif self._witness is None:
            self._num_late = 0
            self._witness = asyncio.create_task(self._bear_witness(answer, left_s))
        else:
            answer.cancel()
            self._circuit.abandoned()
            self._num_late += 1
        raise Skipped("late")

    async def close(self) -> None:
        """End every call and the thread."""
        await asyncio.wrap_future(self._on_thread(self._end()))
        if self._witness is not None:
            await asyncio.wait((self._witness,))
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    def _ended(self, answer: "asyncio.Future[list[int]]") -> list[int]:
        """The order of a call that has ended. Raises Skipped."""
        try:
            order = answer.result()
        except Skipped as skipped:
            if skipped.reason == "failed":
                self._failed(str(skipped))
            else:
                self._succeeded()
            raise
        except BaseException:
            self._circuit.abandoned()
            raise
        self._succeeded()
        return order

    async def _bear_witness(self, answer: "asyncio.Future[list[int]]", seconds: float) -> None:
        """Let one call go on without its caller, who had less time than `timeout_s`: whether it is answered within that
        says whether the service is well, which no caller in a hurry sees. If not, all who were late meanwhile count.
        """
        try:
            await asyncio.wait((answer,), timeout=seconds)
            if answer.done():
                with contextlib.suppress(Skipped, asyncio.CancelledError):
                    self._ended(answer)
                return
            answer.cancel()
            for _ in range(1 + self._num_late):
                self._failed("no answer in time")
        finally:
            self._witness = None

    def _succeeded(self) -> None:
        self._num_late = 0
        self._circuit.succeeded()

    def _failed(self, why: str) -> None:
        if self._circuit.failed():
            _log.warning("%s failed several times in a row, it is left alone for a while: %s", self.options.url, why)

    def _on_thread(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    async def _two_passes(self, history: Sequence[Item], candidates: Sequence[Item]) -> list[int]:
        """First for diversity, then for accuracy. Raises Skipped."""
        try:
            diverse = await self._pass(messages(DIVERSITY, history, candidates), len(candidates))
            shown = [candidates[number - 1] for number in diverse]
            order = await self._pass(messages(ACCURACY, history, shown), len(candidates))
        except NoPermutation:
            raise Skipped("no_permutation") from None
        return [number - 1 for number in order]

    async def _pass(self, asked: Messages, num_candidates: int) -> list[int]:
        most_tokens = TOKENS_OF_AN_ANSWER + TOKENS_OF_A_NUMBER * num_candidates
        return permutation(said(await self._ask(asked, most_tokens)), num_candidates)

    async def _ask(self, asked: Messages, most_tokens: int) -> bytes:
        """The body of an answer. Raises Skipped."""
        body = {"model": self.options.model, "messages": asked, "temperature": 0, "max_tokens": most_tokens}
        body["response_format"] = {"type": "json_object"}
        headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
        if self.options.key is not None:
            headers["authorization"] = f"Bearer {self.options.key}"
        answer, num_chunks = bytearray(), 0
        try:
            url = f"{self.options.url.rstrip('/')}/chat/completions"
            async with self._client.stream("POST", url, content=orjson.dumps(body), headers=headers) as response:
                if response.status_code != 200:
                    raise Skipped("failed", f"status {response.status_code}")
                body_parts = cast("AsyncGenerator[bytes, None]", response.aiter_raw())
                async with aclosing(body_parts):  # left in the middle it would end some time later
                    async for chunk in body_parts:
                        answer += chunk
                        num_chunks += 1
                        if len(answer) > MAX_ANSWER_BYTES or num_chunks > MAX_ANSWER_CHUNKS:
                            raise Skipped("failed", "the answer is too long")
        except self._errors as error:
            raise Skipped("failed", type(error).__name__) from error
        return bytes(answer)


def said(body: bytes) -> str:
    """What the model says in an answer. Raises Skipped."""
    try:
        choice = orjson.loads(body)["choices"][0]
        message = choice["message"]
        content, refusal, end = message.get("content"), message.get("refusal"), choice.get("finish_reason")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        raise Skipped("failed", "the answer is no chat completion") from None
    if refusal or end == "content_filter":
        raise Skipped("refused")
    if not isinstance(content, str):
        raise Skipped("failed", "the answer has no text")
    return content

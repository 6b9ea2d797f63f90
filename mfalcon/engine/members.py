"""The members of an ensemble: models of this engine, and models of other replicas, which may be away."""

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np

from mfalcon.capture.seen import Seen
from mfalcon.engine.catalog import Catalog
from mfalcon.engine.jobs import Jobs
from mfalcon.errors import ConfigError, DeadlineExceeded, EngineFailure, MFalconError, NotReady, Overloaded
from mfalcon.history.history import Reading
from mfalcon.types import CacheInfo, DenseFeatures, ModelInfo, RankRequest, RankResult

_log = logging.getLogger(__name__)

MOST_CALLS = 256
"""Of one remote member at once; it is not asked for more."""
_MISSES = 3
"""Calls in a row that found nobody, or no answer in time, after which a replica is asked whether it lives."""
_NEARLY_S = 0.002
_PROBE_S = 0.5
"""How long a replica may take to say what it serves."""
_POLL_S = 0.25
_START_S = 1.0
_PREFILL_S = 10.0
_KNOWN_VERSIONS = 8
"""Behind an address there may be replicas of several, while they are exchanged."""


class Disagrees(EngineFailure):
    """What a member serves cannot be merged with what the others do."""


class Away(NotReady):
    """A member that does not answer; it is not waited for."""


class Member(Protocol):
    """Who is asked. address: "" for this engine."""

    @property
    def model(self) -> str:
        """By name."""
        ...

    @property
    def address(self) -> str:
        """Of the replica that is asked, "" for this engine."""
        ...

    @property
    def info(self) -> ModelInfo | None:
        """What it serves, None while that is not known."""
        ...

    async def rank(
        self, request: RankRequest, reading: Reading | None, until: float, beside: object, seen: Seen | None = None
    ) -> RankResult:
        """Score the candidates by then (time.monotonic()). Raises MFalconError. reading: of the log, for a
        member of this engine. beside: see `RankJob`. seen: is told what a member of this engine reads.
        """
        ...

    async def prefill(self, user_id: str, reading: Reading | None, until: float) -> CacheInfo:
        """Encode the user's history. Raises MFalconError."""
        ...


class LocalMember:
    """A model of this engine's catalog. Satisfies `Member`."""

    address = ""

    def __init__(self, model: str, catalog: Catalog, jobs: Jobs) -> None:
        """Raises UnknownModel."""
        self._catalog = catalog
        self._jobs = jobs
        self.model = catalog.get(model).name

    @property
    def info(self) -> ModelInfo:
        """What is served under its name now."""
        return self._catalog.get(self.model).info

    async def rank(
        self, request: RankRequest, reading: Reading | None, until: float, beside: object, seen: Seen | None = None
    ) -> RankResult:
        """See `Member`."""
        ranker = self._catalog.get(self.model)
        asked = narrowed(request, ranker.info)
        return await self._jobs.rank(ranker, asked, until, reading=reading, beside=beside, seen=seen)

    async def prefill(self, user_id: str, reading: Reading | None, until: float) -> CacheInfo:
        """See `Member`."""
        deadline = until if until < math.inf else None
        return await self._jobs.prefill(self._catalog.get(self.model), user_id, deadline, reading=reading)


class RemoteModel(Protocol):
    """A model of another replica, as a client sees it. Its methods raise Overloaded, DeadlineExceeded, NotReady where
    nobody answers, or another MFalconError.
    """

    @property
    def model(self) -> str:
        """By name."""
        ...

    @property
    def address(self) -> str:
        """Where the replica listens."""
        ...

    async def describe(self, timeout_s: float) -> ModelInfo:
        """What is served there under the name."""
        ...

    async def rank(self, request: RankRequest, timeout_s: float) -> RankResult:
        """Score the candidates."""
        ...

    async def prefill(self, user_id: str, timeout_s: float) -> CacheInfo:
        """Encode the user's history."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class RemoteMember:
    """A model of another replica. Satisfies `Member`. Lives on the event loop.

    One that is away is not waited for, and asked beside the requests until it is back. Who is slow is not away: before
    that is believed the replica is asked what it serves, which takes it no time. So no request that is too large for a
    budget, or in too much of a hurry, parts others from a member.
    """

    def __init__(self, remote: RemoteModel, agrees: Callable[[ModelInfo], None]) -> None:
        """agrees: raises ConfigError for what cannot be merged."""
        self._remote = remote
        self._agrees = agrees
        self._known: OrderedDict[str, ModelInfo] = OrderedDict()
        self._trouble: MFalconError | None = Away("it has not been reached yet")
        self._num_misses = 0
        self._num_calls = 0
        self._describing: asyncio.Task[None] | None = None
        self._suspected = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    @property
    def model(self) -> str:
        """By name."""
        return self._remote.model

    @property
    def address(self) -> str:
        """Where the replica listens."""
        return self._remote.address

    @property
    def info(self) -> ModelInfo | None:
        """What it served when it was last asked."""
        return next(reversed(self._known.values()), None)

    async def start(self) -> None:
        """Ask what it serves, and begin to watch it. A replica that is away may come later. Raises ConfigError for what
        cannot be merged.
        """
        try:
            await self._describe(_START_S)
        except Disagrees as error:
            raise ConfigError(str(error)) from error
        except MFalconError as error:
            _log.warning("%s is away (%s): answers go without it until it is there", self, error)
        self._watching = asyncio.create_task(self._watch())

    async def rank(
        self, request: RankRequest, reading: Reading | None, until: float, beside: object, seen: Seen | None = None
    ) -> RankResult:
        """See `Member`. It reads the log itself."""
        info = self._expected()
        self._num_calls += 1
        try:
            result = await self._remote.rank(narrowed(request, info), _left(until))
            if result.model_version not in self._known:
                await self._describe(_left(until))
            if result.model_version not in self._known:
                raise EngineFailure(f"it answers by version {result.model_version}, and does not say what that is")
            _check_answer(result, request, self._known[result.model_version])
        except NotReady:
            self._miss()
            raise
        except (asyncio.CancelledError, DeadlineExceeded):
            if time.monotonic() >= until - _NEARLY_S:  # else its caller has left
                self._miss()
            raise
        except MFalconError:  # an answer too
            self._num_misses = 0
            raise
        finally:
            self._num_calls -= 1
        self._num_misses = 0
        return result

    async def prefill(self, user_id: str, reading: Reading | None, until: float) -> CacheInfo:
        """See `Member`."""
        self._expected()
        self._num_calls += 1
        try:
            return await self._remote.prefill(user_id, min(_PREFILL_S, _left(until)))
        finally:
            self._num_calls -= 1

    async def close(self) -> None:
        """Stop watching, and hang up."""
        tasks = [task for task in (self._watching, self._describing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._remote.close()

    def __str__(self) -> str:
        return f"member {self.model} at {self.address}"

    def _expected(self) -> ModelInfo:
        """What it serves. Raises why it is not asked."""
        info = self.info
        if self._trouble is not None or info is None:
            raise self._trouble or Away("it has not been reached yet")
        if self._num_calls >= MOST_CALLS:
            raise Overloaded(f"{MOST_CALLS} calls to it are under way, which is its limit")
        return info

    def _miss(self) -> None:
        self._num_misses += 1
        if self._num_misses >= _MISSES:
            self._suspected.set()

    async def _watch(self) -> None:
        """Ask for what it serves while it is away, and when that is suspected; for ever."""
        while True:
            if self._trouble is None:
                await self._suspected.wait()
            else:
                await asyncio.sleep(_POLL_S)
            self._suspected.clear()
            self._num_misses = 0
            try:
                await self._describe(_PROBE_S)
            except Exception as error:  # noqa: BLE001 (the task's edge: it is asked again)
                if not isinstance(error, MFalconError):
                    _log.exception("%s: asking it failed", self)
                if self._trouble is None:
                    _log.warning("%s is away (%s): answers go without it until it is back", self, error)
                    self._trouble = Away(str(error))

    async def _describe(self, timeout_s: float) -> None:
        """Ask what it serves; those who ask at once share an answer. Raises Disagrees, DeadlineExceeded or NotReady."""
        if self._describing is None or self._describing.done():
            self._describing = asyncio.create_task(self._ask())
            self._describing.add_done_callback(lambda task: task.cancelled() or task.exception())
        done, _ = await asyncio.wait((self._describing,), timeout=timeout_s)
        if not done:
            raise DeadlineExceeded(f"it did not say within {1e3 * timeout_s:.0f} ms what it serves")
        self._describing.result()

    async def _ask(self) -> None:
        info = await self._remote.describe(_PROBE_S)
        try:
            self._agrees(info)
        except ConfigError as error:
            trouble = Disagrees(str(error))
            if self._trouble is None or str(self._trouble) != str(trouble):
                _log.error("%s is left out: %s", self, error)
            self._trouble = trouble
            self._suspected.set()  # whoever asked: from now on it is watched
            raise trouble from error
        if self._trouble is not None:
            _log.info("%s is there, version %s", self, info.version)
        self._trouble = None
        self._known[info.version] = info
        self._known.move_to_end(info.version)
        while len(self._known) > _KNOWN_VERSIONS:
            self._known.popitem(last=False)


def narrowed(request: RankRequest, info: ModelInfo) -> RankRequest:
    """What a member is asked: the features that it reads, and scores alone."""
    names, dense = {feature.name for feature in info.context_features}, request.dense
    context = {name: value for name, value in request.context.items() if name in names}
    read = [at for at, name in enumerate(dense.names) if name in info.dense_features]
    if len(read) < len(dense.names):
        values = dense.values.reshape(len(request.candidates), len(dense.names))[:, read]
        dense = DenseFeatures(tuple(dense.names[at] for at in read), np.ascontiguousarray(values).ravel())
    return replace(request, context=context, dense=dense, top_k=0, rerank=None)


def _check_answer(result: RankResult, request: RankRequest, info: ModelInfo) -> None:
    """Raise EngineFailure for what is no answer to this request: whoever is elsewhere spoils no merge."""
    num, shape = len(request.candidates), result.task_scores.shape
    fits = result.num_scored == num or (request.allow_partial and 0 < result.num_scored < num)
    if not fits or shape != (len(info.task_infos), result.num_scored):
        raise EngineFailure(f"it answers with task scores of shape {shape} for {num} candidates")
    if not np.isfinite(result.task_scores).all():
        raise EngineFailure("it answers with task scores that are no finite numbers")


def _left(until: float) -> float:
    """Seconds, 1 ms at least."""
    return max(0.001, until - time.monotonic())

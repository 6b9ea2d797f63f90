"""Several models that answer as one: asked side by side, merged by what has arrived when the budget is spent."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from opentelemetry.trace import SpanKind

from mfalcon.capture.seen import Seen
from mfalcon.engine.job import reply_by
from mfalcon.engine.members import Member, RemoteMember, RemoteModel
from mfalcon.engine.outcomes import Outcome, merged, named, of_one_history, too_few, total
from mfalcon.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    MFalconError,
    TooFewMembers,
)
from mfalcon.history.history import Reading
from mfalcon.merging.agreement import Contract, check_agreement
from mfalcon.merging.merge import Calibration, Merge
from mfalcon.metrics.server_metrics import ServerMetrics
from mfalcon.spans import exemplar, is_traced, stage, within
from mfalcon.types import (
    CacheInfo,
    ContextFeatureInfo,
    EnsembleInfo,
    MemberInfo,
    MergeMethod,
    ModelInfo,
    RankRequest,
    RankResult,
)

_log = logging.getLogger(__name__)

ReadLog = Callable[[str, float | None], Awaitable[Reading]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MemberOptions:
    """remote: where a model of that name is asked, None for one of this engine."""

    model: str
    weight: float
    remote: RemoteModel | None = None


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """budget_s: after how long the merge takes what has arrived. calibration: by name of the task."""

    name: str
    members: tuple[MemberOptions, ...]
    merge: MergeMethod = "logit"
    budget_s: float = 0.1
    min_members: int = 1
    calibration: Mapping[str, Calibration] = field(default_factory=dict)


class Ensemble:
    """Answers requests with members. Lives on the event loop."""

    def __init__(
        self,
        options: EnsembleOptions,
        metrics: ServerMetrics,
        local: Callable[[str], Member],
        read: ReadLog | None,
    ) -> None:
        """local: a model of this engine, by name. read: reads the event log for these, which share one reading; None if
        there are none. Raises ConfigError for members that cannot be merged, UnknownModel for one that is not served.
        """
        self.name = options.name
        self._options = options
        self._metrics = metrics
        self._read = read
        self._remotes = list[RemoteMember]()
        self._members = list[Member]()
        for member in options.members:
            if member.remote is None:
                self._members.append(local(member.model))
            else:
                remote = RemoteMember(member.remote, partial(self.check, len(self._members)))
                self._remotes.append(remote)
                self._members.append(remote)
        names = [named(member) for member in self._members]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"ensemble {self.name}: {twice[0]} is a member twice")
        self._infos: tuple[ModelInfo | None, ...] = ()
        self._info: ModelInfo | None = None
        self.check()

    @property
    def locals(self) -> list[str]:
        """Names of the members that are models of this engine, in order."""
        return [member.model for member in self._members if not member.address]

    @property
    def info(self) -> ModelInfo:
        """What clients may know. It changes when a member's does."""
        infos = tuple(member.info for member in self._members)
        same = len(infos) == len(self._infos) and all(map(_is, infos, self._infos))
        if self._info is None or not same:
            self._infos, self._info = infos, self._describe(infos)
        return self._info

    def check_reload(self, new: ModelInfo) -> None:
        """Raise ConfigError unless the member here of that name may be this."""
        for at, member in enumerate(self._members):
            if not member.address and member.model == new.name:
                self.check(at, new)

    def check(self, at: int | None = None, new: ModelInfo | None = None) -> None:
        """Raise ConfigError unless all members that are known can be merged. at, new: what one would be."""
        infos = [new if index == at else member.info for index, member in enumerate(self._members)]
        for member, info in zip(self._members, infos, strict=True):
            if info is not None and info.conditions:
                raise ConfigError(
                    f"ensemble {self.name}: {named(member)} has conditions, must be a model that ranks items"
                )
        contracts = {
            named(member): Contract.of(info)
            for member, info in zip(self._members, infos, strict=True)
            if info is not None
        }
        try:
            check_agreement(contracts)
        except ConfigError as error:
            raise ConfigError(f"ensemble {self.name}: {error}") from error
        for contract in contracts.values():
            names = [task.name for task in contract.tasks]
            if unknown := set(self._options.calibration) - set(names):
                raise ConfigError(
                    f"ensemble {self.name}: calibration is given for task {min(unknown)}, must be {', '.join(names)}"
                )

    async def start(self) -> None:
        """Ask the replicas what they serve. Raises ConfigError for what cannot be merged."""
        await asyncio.gather(*(remote.start() for remote in self._remotes))

    async def close(self) -> None:
        """Hang up."""
        await asyncio.gather(*(remote.close() for remote in self._remotes))

    async def rank(self, request: RankRequest, deadline: float | None, seen: Seen | None = None) -> RankResult:
        """Score a request's candidates by all members that answer within the budget. Its `rerank` is for the caller.
        seen: is told what the members here read.

        Raises TooFewMembers, or what all members that did not answer have raised; InvalidInput for recent events that
        are older than the log.
        """
        accepted = time.monotonic()
        callers = reply_by(deadline, accepted)
        until, beside = min(accepted + self._options.budget_s, callers), object()
        outcomes = await self._ask(
            request.user_id,
            lambda member, reading: member.rank(request, reading, until, beside, seen),
            accepted,
            until,
        )
        asked, outcomes = time.monotonic(), of_one_history(outcomes)
        for outcome in outcomes:
            self._metrics.merges.member(self.name, named(outcome.member), outcome.word)
        needed = self._options.min_members
        if sum(outcome.error is None for outcome in outcomes) < needed:
            self._metrics.merges.merged(self.name, "too_few")
            raise too_few(outcomes, needed, is_callers_time=until == callers and time.monotonic() >= until)
        result = merged(outcomes, self._merge(), request.top_k, accepted)
        if is_traced():
            stage("merge", asked, time.monotonic(), {"mfalcon.partial_merge": result.partial_merge})
        self._metrics.merges.merged(self.name, "partial" if result.partial_merge else "whole")
        self._metrics.stages.took(self.name, "merge", result.timings.merge_us / 1e6, exemplar())
        if result.num_scored < len(request.candidates):
            self._metrics.device.partial.labels(self.name).inc()
        return result

    async def prefill(self, user_id: str, deadline: float | None) -> CacheInfo:
        """Encode the user's history by every member. Raises as `rank` does where fewer have done so than it needs."""
        accepted = time.monotonic()
        until = reply_by(deadline, accepted)
        outcomes = await self._ask(
            user_id, lambda member, reading: member.prefill(user_id, reading, until), accepted, until
        )
        caches = [outcome.answer for outcome in outcomes if outcome.answer is not None]
        if len(caches) < self._options.min_members:
            raise too_few(outcomes, self._options.min_members, is_callers_time=time.monotonic() >= until)
        return total(caches)

    async def _ask(
        self,
        user_id: str,
        ask: Callable[[Member, Reading | None], Awaitable[T]],
        accepted: float,
        until: float,
    ) -> list[Outcome[T]]:
        """What each has answered by then, and sooner if too few can answer any more. Raises InvalidInput: what a member
        of this engine refuses so, all do.
        """
        asked = dict[int, asyncio.Task[Outcome[T]]]()

        def begin(at: int, reading: Reading | MFalconError | None) -> None:
            member, weight = self._members[at], self._options.members[at].weight
            asked[at] = asyncio.create_task(self._one(member, weight, ask, reading, accepted))

        try:
            for at, member in enumerate(self._members):
                if member.address:
                    begin(at, None)
            read = await self._reading(user_id, until) if self._read is not None else None
            for at, member in enumerate(self._members):
                if not member.address:
                    begin(at, read)
            waiting = {task for task in asked.values() if not task.done()}
            while waiting and (left := until - time.monotonic()) > 0:
                _, waiting = await asyncio.wait(
                    waiting, timeout=left if left < math.inf else None, return_when=asyncio.FIRST_COMPLETED
                )
                errors = [(task.result().member, task.result().error) for task in asked.values() if task.done()]
                for member, error in errors:
                    if isinstance(error, InvalidInput) and not member.address:
                        raise error
                num_lost = sum(error is not None for _, error in errors)
                if len(asked) - num_lost < self._options.min_members:
                    break
            now = time.monotonic()
            without = (
                DeadlineExceeded(f"no answer within {1e3 * (now - accepted):.0f} ms")
                if now >= until
                else TooFewMembers("the others were too few")
            )
            return [
                asked[at].result()
                if asked[at].done()
                else Outcome(member, options.weight, None, without, now - accepted)
                for at, (member, options) in enumerate(zip(self._members, self._options.members, strict=True))
            ]
        finally:
            for task in asked.values():
                task.cancel()

    async def _reading(self, user_id: str, until: float) -> Reading | MFalconError:
        """Of the log, for all members here, or why there is none."""
        assert self._read is not None
        try:
            async with asyncio.timeout(until - time.monotonic() if until < math.inf else None):
                return await self._read(user_id, until if until < math.inf else None)
        except TimeoutError:
            return DeadlineExceeded("the event log was not read in time")
        except MFalconError as error:
            return error.with_traceback(None)

    async def _one(
        self,
        member: Member,
        weight: float,
        ask: Callable[[Member, Reading | None], Awaitable[T]],
        reading: Reading | MFalconError | None,
        accepted: float,
    ) -> Outcome[T]:
        """Of one member. It is asked here and no sooner: a task may be cancelled before it begins. reading: of the log,
        or why there is none.
        """
        answer: T | None = None
        error: MFalconError | None = None
        with within("member", SpanKind.CLIENT if member.address else SpanKind.INTERNAL) as span:
            try:
                if isinstance(reading, MFalconError):
                    raise reading
                answer = await ask(member, reading)
            except MFalconError as raised:
                error = raised.with_traceback(None)  # its frames hold KV states, and this one holds it
            except Exception:  # noqa: BLE001 (the edge of a member: what fails one of them fails no other)
                _log.exception("member %s of ensemble %s failed", named(member), self.name)
                error = EngineFailure("it failed on this request; the server's log has the cause")
            outcome = Outcome(member, weight, answer, error, time.monotonic() - accepted)
            span.set_attributes({"mfalcon.member": named(member), "mfalcon.outcome": outcome.word})
        return outcome

    def _merge(self) -> Merge:
        tasks = self.info.task_infos
        calibration = tuple(self._options.calibration.get(task.name, Calibration()) for task in tasks)
        return Merge(self._options.merge, tasks, calibration)

    def _describe(self, infos: Sequence[ModelInfo | None]) -> ModelInfo:
        known = [info for info in infos if info is not None]
        context = dict[str, ContextFeatureInfo]()
        for info in known:
            context |= {feature.name: feature for feature in info.context_features}
        options = self._options
        members = tuple(
            MemberInfo(member.model, member.address, each.weight, info.version if info is not None else "")
            for member, each, info in zip(self._members, options.members, infos, strict=True)
        )
        return ModelInfo(
            name=self.name,
            version="+".join(member.version or "?" for member in members),
            architecture="ensemble",
            tasks=known[0].tasks if known else (),
            actions=known[0].actions if known else (),
            context_features=tuple(context.values()),
            dense_features=tuple(dict.fromkeys(name for info in known for name in info.dense_features)),
            counters=tuple(dict.fromkeys(name for info in known for name in info.counters)),
            max_history=max((info.max_history for info in known), default=0),
            max_candidates=min((info.max_candidates for info in known), default=0),
            prefix_stable=all(info.prefix_stable for info in known),
            reads_last_events=bool(known) and all(info.reads_last_events for info in known),
            backend=f"merge of {len(members)} models",
            task_infos=known[0].task_infos if known else (),
            ensemble=EnsembleInfo(options.merge, round(1e3 * options.budget_s), options.min_members, members),
            item_ids="text" if any(info.item_ids == "text" for info in known) else "integer",
        )


def _is(one: object, other: object) -> bool:
    return one is other

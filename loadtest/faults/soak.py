"""Many clients mix Rank, AppendEvents and DeleteUser over shared users; every answer is held against a cold oracle.

Events are a function of (user, life, position), where a life ends with a DeleteUser. An answer says how many events it
saw; it is right if a forward from nothing over that many events of a life that was current during the call, and the
request's own recent events, gives the same scores. Appends come in pairs that race for the same `expected_len`: one
must win. Checked after the run, so that the oracle takes no time from the server.
"""

import asyncio
import time
from dataclasses import dataclass, field

import grpc
import numpy as np
import torch

from mfalcon.algorithm import prefill, score
from mfalcon.backends.select import reference
from mfalcon.client import append_message, rank_message, rank_result
from mfalcon.models.base import Targets, context_codes, event_tokens
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, Events, Floats, Ids, no_events
from mfalcon.window import WindowRule
from proto import ranking_pb2 as pb
from proto.ranking_pb2_grpc import RankingStub

BOUND = 1e-5
"""Worst float32 score difference that still counts as equal."""
NOW_MS = 1_700_000_000_000
_CALL_S = 30.0
_MICROBATCH = 64
_CHUNK = 256
_RECENT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """What to run."""

    target: str
    seconds: float = 60.0
    num_clients: int = 64
    num_users: int = 200
    num_candidates: int = 50
    seed: int = 0


@dataclass(slots=True)
class _User:
    """What the clients know of a user. Writes to one user take turns, ranks do not.

    oldest: the earliest life that an answer may still show; behind `life` while a delete is in flight.
    """

    life: int = 0
    oldest: int = 0
    size: int = 0
    write: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One ranked request: who, which lives it may have seen, how many events it saw, and what it got."""

    user: int
    first_life: int
    last_life: int
    history_len: int
    recent: Events
    candidates: Ids
    task_scores: Floats


@dataclass(frozen=True, slots=True)
class SoakReport:
    """What came back. `unanswered` counts calls that ended without an answer or with one that nobody expects."""

    sent: int
    ranked: int
    appended: int
    refused: int
    deleted: int
    unanswered: int
    wrong: int
    worst_error: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float

    @property
    def holds(self) -> bool:
        """Every request answered once, every score equal to the oracle's."""
        return (
            self.unanswered == 0
            and self.wrong == 0
            and self.sent == self.ranked + self.appended + self.refused + self.deleted
        )


class Soak:
    """One run against one server."""

    def __init__(self, checkpoint: Checkpoint, options: SoakOptions) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._users = [_User() for _ in range(options.num_users)]
        self._answers: list[_Answer] = []
        self._seconds: list[float] = []
        self._counts = {"rank": 0, "append": 0, "refused": 0, "delete": 0, "sent": 0, "unanswered": 0}

    async def run(self) -> SoakReport:
        """Send for the given time, then check every answer."""
        options = self._options
        began = time.monotonic()
        async with grpc.aio.insecure_channel(options.target) as channel:
            stub = RankingStub(channel)
            stop = began + options.seconds
            await asyncio.gather(*(self._client(stub, number, stop) for number in range(options.num_clients)))
        elapsed = time.monotonic() - began
        wrong, worst = await asyncio.to_thread(self._check)
        counts = self._counts
        p50, p99 = np.percentile(self._seconds, [50, 99]) * 1000 if self._seconds else (0.0, 0.0)
        return SoakReport(
            sent=counts["sent"],
            ranked=counts["rank"],
            appended=counts["append"],
            refused=counts["refused"],
            deleted=counts["delete"],
            unanswered=counts["unanswered"],
            wrong=wrong,
            worst_error=worst,
            requests_per_second=counts["sent"] / elapsed,
            p50_ms=float(p50),
            p99_ms=float(p99),
        )

    async def _client(self, stub: RankingStub, number: int, stop: float) -> None:
        rng = np.random.default_rng((self._options.seed, number))
        while time.monotonic() < stop:
            user = int(rng.zipf(1.3) % self._options.num_users)
            kind = rng.choice(["rank", "append", "delete"], p=[0.68, 0.3, 0.02])
            try:
                await getattr(self, f"_{kind}")(stub, user, rng)
            except grpc.aio.AioRpcError:
                self._counts["unanswered"] += 1

    async def _rank(self, stub: RankingStub, user: int, rng: np.random.Generator) -> None:
        candidates = rng.choice(self._checkpoint.items.item_id, self._options.num_candidates)
        first = self._users[user].oldest
        began = time.perf_counter()
        recent = self._recent(rng) if rng.random() < _RECENT_SHARE else no_events()
        message = rank_message(_name(user), candidates, request_time_ms=NOW_MS, recent_events=recent)
        self._counts["sent"] += 1
        result = rank_result(await stub.Rank(message, timeout=_CALL_S))
        self._counts["rank"] += 1
        self._seconds.append(time.perf_counter() - began)
        last = self._users[user].life
        self._answers.append(_Answer(user, first, last, result.history_len, recent, candidates, result.task_scores))

    async def _append(self, stub: RankingStub, user: int, rng: np.random.Generator) -> None:
        known = self._users[user]
        async with known.write:
            count = int(rng.integers(1, 30))
            events = self._events(user, known.life, known.size + count)[known.size :]
            message = append_message(_name(user), events, known.size)
            self._counts["sent"] += 2
            calls = (stub.AppendEvents(message, timeout=_CALL_S) for _ in range(2))
            replies = await asyncio.gather(*calls, return_exceptions=True)
            lengths = [reply.history_len for reply in replies if isinstance(reply, pb.AppendEventsResponse)]
            refusals = [reply for reply in replies if isinstance(reply, grpc.aio.AioRpcError)]
            self._counts["append"] += len(lengths)
            self._counts["refused"] += sum(r.code() == grpc.StatusCode.FAILED_PRECONDITION for r in refusals)
            known.size += count
            if lengths != [known.size]:
                raise AssertionError(f"appends that raced for length {known.size - count} gave {lengths}")

    async def _delete(self, stub: RankingStub, user: int, rng: np.random.Generator) -> None:
        known = self._users[user]
        async with known.write:
            known.life += 1
            known.size = 0
            self._counts["sent"] += 1
            await stub.DeleteUser(pb.DeleteUserRequest(user_id=_name(user)), timeout=_CALL_S)
            self._counts["delete"] += 1
            known.oldest = known.life

    def _events(self, user: int, life: int, count: int) -> Events:
        """The first events of a user's life."""
        num_actions = len(self._checkpoint.model.config.actions)
        events = np.zeros(-(-count // _CHUNK) * _CHUNK, dtype=EVENT_DTYPE)
        for start in range(0, count, _CHUNK):
            rng = np.random.default_rng((self._options.seed, user, life, start))
            chunk = events[start : start + _CHUNK]
            chunk["item_id"] = rng.choice(self._checkpoint.items.item_id, _CHUNK)
            chunk["actions"] = 1 << rng.integers(0, num_actions, _CHUNK)
        events["time_ms"] = 10**12 + np.arange(len(events)) * 60_000
        return events[:count]

    def _recent(self, rng: np.random.Generator) -> Events:
        """A few events newer than any of the log."""
        events = self._events(int(rng.integers(2**31)), 0, int(rng.integers(1, 6)))
        events["time_ms"] = NOW_MS - 1000 + np.arange(len(events))
        return events

    def _check(self) -> tuple[int, float]:
        errors = [self._error(answer) for answer in self._answers]
        return sum(not error <= BOUND for error in errors), max(errors, default=0.0)

    def _error(self, answer: _Answer) -> float:
        """Smallest difference over the lives that the answer may have seen."""
        lives = range(answer.first_life, answer.last_life + 1)
        return min(self._difference(answer, life) for life in lives)

    def _difference(self, answer: _Answer, life: int) -> float:
        model, items = self._checkpoint.model, self._checkpoint.items
        config, device = model.config, model.items.id.weight.device
        history = np.concatenate([self._events(answer.user, life, answer.history_len), answer.recent])
        start = WindowRule(config.max_history, config.window_chunk).start(len(history))
        codes = torch.from_numpy(context_codes(config.context_features, {}, NOW_MS)).to(device)
        targets = Targets(torch.from_numpy(items.rows(answer.candidates)).to(device), codes)
        with torch.inference_mode():
            served = reference(model)
            state = prefill(served, event_tokens(history[start:], items, device))
            cold = score(served, state, targets, NOW_MS, _MICROBATCH).float().cpu().numpy().T
        gap = np.abs(cold - answer.task_scores).max()
        return float(gap) if np.isfinite(gap) else float("inf")


def _name(user: int) -> str:
    return f"soak-{user}"

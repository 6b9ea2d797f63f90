"""A stream that is not in order: a part of the events comes late, by up to so many seconds, and is inserted, clamped or
rejected. What the histories are afterwards, whether scores are those of a cold model, and what is encoded for it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.bench.random_checkpoint import random_checkpoint
from loadtest.bench.shapes import shape_named
from loadtest.report.machine import Machine, commit, this_machine
from loadtest.report.result import Bar
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import InvalidInput
from mfalcon.history.history import no_history
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.types import EVENT_DTYPE, LATE_EVENTS, Append, Events, LateEvents, RankRequest, no_events

NOTES = (
    "a stream of the events of all users in the order in which they come; each append has one event, and every so many "
    "events of a user a rank follows",
    "in order: the same stream without delays, the tokens that it takes to encode what is new",
    "encoded again: tokens encoded beyond those, in all and for each late event; a whole history each time: what they "
    "would be if a state were of no use after an insert",
    "histories: of how many users the history is what a stable sort of all that came gives; scores: the largest "
    "difference from an engine that has never seen the user, which is given that history at once",
)

_ITEMS = 1_000
_DAY_MS = 86_400_000
_START_MS = 1_690_000_000_000


@dataclass(frozen=True, slots=True)
class LateOptions:
    """num_events, num_users: of the stream, over a day. late_share: of them come late, by up to max_delay_s.
    rank_every: events of a user. num_candidates: of each rank. checked_users: whose last scores are compared.
    """

    shape: str = "tiny"
    num_events: int = 100_000
    num_users: int = 200
    late_share: float = 0.01
    max_delay_s: float = 600.0
    rank_every: int = 4
    num_candidates: int = 16
    checked_users: int = 200
    threads: int = 1
    seed: int = 0


QUICK = LateOptions(num_events=4_000, num_users=10, checked_users=10)


@dataclass(frozen=True, slots=True)
class LateRow:
    """One way of treating late events. lost: events that were not stored. again: tokens beyond `in order`; whole: those
    that whole histories would have been. sorted_users: of `num_users`. difference: of scores, None where the histories
    are not what they are compared for.
    """

    late_events: str
    inserted: int
    clamped: int
    lost: int
    encoded: int
    again: int
    whole: int
    sorted_users: int
    difference: float | None


@dataclass(frozen=True, slots=True)
class LateResult:
    """Everything that `mfalcon bench late-events` knows. late: events that come after a newer one of their user."""

    benchmark: str
    machine: Machine
    commit: str | None
    notes: tuple[str, ...]
    options: LateOptions
    backend: str
    late: int
    in_order: int
    rows: tuple[LateRow, ...]
    bars: tuple[Bar, ...]


@dataclass(slots=True)
class _Told:
    """What the engine said of a stream."""

    inserted: int = 0
    clamped: int = 0
    lost: int = 0
    encoded: int = 0
    whole: int = 0


def run(options: LateOptions, progress: Callable[[str], None]) -> LateResult:
    """Stream the events in order, and then as they come under each policy, into engines of their own."""
    checkpoint = random_checkpoint(shape_named(options.shape), _ITEMS, options.seed, max_history=1_024)
    users, events, order = stream(options)
    late = num_late(users[order], events[order])
    return asyncio.run(_run(options, checkpoint, users, events, order, late, progress))


def stream(options: LateOptions) -> tuple[np.ndarray, Events, np.ndarray]:
    """Users [n] and events [n] by time, which no two share, and the order in which they come [n]."""
    random = np.random.default_rng(options.seed)
    n = options.num_events
    events = np.zeros(n, dtype=EVENT_DTYPE)
    events["time_ms"] = _START_MS + np.sort(random.choice(_DAY_MS, n, replace=False))
    events["item_id"] = random.integers(1, _ITEMS + 1, n)
    events["actions"], events["value"] = random.integers(0, 32, n), random.integers(1, 6, n)
    delays = np.where(random.random(n) < options.late_share, random.uniform(0, 1_000 * options.max_delay_s, n), 0.0)
    order = np.argsort(events["time_ms"] + delays, kind="stable")
    return random.integers(0, options.num_users, n), events, order


def num_late(users: np.ndarray, events: Events) -> int:
    """How many come after a newer one of their user."""
    newest: dict[int, int] = {}
    late = 0
    for user, time_ms in zip(users.tolist(), events["time_ms"].tolist(), strict=True):
        late += time_ms < newest.get(user, 0)
        newest[user] = max(time_ms, newest.get(user, 0))
    return late


async def _run(
    options: LateOptions,
    checkpoint: Checkpoint,
    users: np.ndarray,
    events: Events,
    order: np.ndarray,
    late: int,
    progress: Callable[[str], None],
) -> LateResult:
    backend, in_order, rows = "", _Told(), list[LateRow]()
    for policy, arrival in (("reject", np.arange(len(events))), *((policy, order) for policy in LATE_EVENTS)):
        is_first = arrival is not order
        progress("in order" if is_first else policy)
        async with _Engine(checkpoint, options.threads) as engine:
            backend = engine.model.backend
            told = await _stream(engine, options, users[arrival], events[arrival], policy)
            if is_first:
                in_order = told
            else:
                row = await _row(engine, checkpoint, options, users[order], events[order], policy, told, in_order)
                rows.append(row)
    by_policy = {row.late_events: row for row in rows}
    insert, reject, clamp = (by_policy[policy] for policy in ("insert", "reject", "clamp"))
    bars = (
        Bar.least("insert: users with the sorted history", float(insert.sorted_users), float(options.num_users)),
        Bar.most("insert: events lost", float(insert.lost), 0.0),
        Bar.most("insert: difference of scores from a cold model", insert.difference, 0.0),
        Bar.most("insert: encoded again, of whole histories", insert.again / max(1, insert.whole), 0.25),
        Bar.most("reject: events lost beyond the late ones", float(abs(reject.lost - late)), 0.0),
        Bar.most("clamp: late events not clamped", float(abs(clamp.clamped - late)), 0.0),
        Bar.most("clamp: events lost", float(clamp.lost), 0.0),
    )
    machine, notes = this_machine(), NOTES
    found = (backend, late, in_order.encoded, tuple(rows), bars)
    return LateResult("late-events", machine, commit(), notes, options, *found)


class _Engine:
    """An engine of its own for a stream."""

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        ranker = RankerOptions(microbatch=64)
        self._engine = compose(checkpoint, EngineConfig(threads=threads, ranker=ranker, histories=HistoryOptions()))

    async def __aenter__(self) -> Engine:
        await asyncio.to_thread(self._engine.wait_ready)
        await self._engine.start()
        return self._engine

    async def __aexit__(self, *_: object) -> None:
        await self._engine.close()


async def _stream(engine: Engine, options: LateOptions, users: np.ndarray, events: Events, policy: LateEvents) -> _Told:
    """Append one by one, and rank now and then."""
    told, counts = _Told(), np.zeros(options.num_users, dtype=np.int64)
    was_late = np.zeros(options.num_users, dtype=np.bool_)
    for at, user in enumerate(users.tolist()):
        try:
            one = await engine.append_events(f"user-{user}", Append(events[at : at + 1], late_events=policy))
            told.inserted, told.clamped = told.inserted + len(one.inserted), told.clamped + len(one.clamped)
            told.lost += len(one.discarded)
            was_late[user] |= bool(one.inserted)
        except InvalidInput:
            told.lost += 1
        counts[user] += 1
        if counts[user] % options.rank_every == 0:
            result = await engine.rank(_request(user, options, at), None)
            told.encoded += result.cache.encoded_tokens
            if was_late[user]:
                told.whole += result.cache.encoded_tokens + result.cache.reused_tokens
                was_late[user] = False
            else:
                told.whole += result.cache.encoded_tokens
    return told


def _request(user: int, options: LateOptions, seed: int) -> RankRequest:
    candidates = np.random.default_rng(seed).integers(1, _ITEMS + 1, options.num_candidates)
    return RankRequest(f"user-{user}", candidates, 0, _START_MS + 2 * _DAY_MS, no_events(), {})


async def _row(
    engine: Engine,
    checkpoint: Checkpoint,
    options: LateOptions,
    users: np.ndarray,
    events: Events,
    policy: LateEvents,
    told: _Told,
    in_order: _Told,
) -> LateRow:
    """Compare every history with the sort, and scores with those of an engine that is given it at once."""
    expected = [_sorted_events(events[users == user]) for user in range(options.num_users)]
    num_sorted = 0
    for user, of_user in enumerate(expected):
        history = (await engine.histories.log.read(f"user-{user}", 1)).history
        num_sorted += history.version == no_history(f"user-{user}").extended(of_user).version
    difference = None
    if policy == "insert":
        difference = await _difference(engine, checkpoint, options, expected)
    again = told.encoded - in_order.encoded
    fates = (told.inserted, told.clamped, told.lost)
    return LateRow(policy, *fates, told.encoded, again, told.whole - in_order.encoded, num_sorted, difference)


def _sorted_events(events: Events) -> Events:
    return events[np.argsort(events["time_ms"], kind="stable")]


async def _difference(
    engine: Engine, checkpoint: Checkpoint, options: LateOptions, expected: Sequence[Events]
) -> float:
    worst = 0.0
    async with _Engine(checkpoint, options.threads) as cold:
        for user in range(min(options.checked_users, len(expected))):
            await cold.append_events(f"user-{user}", Append(expected[user]))
            request = replace(_request(user, options, user), top_k=3)
            warm, truth = await engine.rank(request, None), await cold.rank(request, None)
            worst = max(worst, float(np.abs(warm.task_scores - truth.task_scores).max()))
    return worst

"""Several models that answer as one: right, on one history, by the budget, whoever of them is lost."""

import asyncio
import contextlib
import gc
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import mfalcon.spans
from mfalcon.engine.compose import EngineConfig, compose, compose_all
from mfalcon.engine.engine import Engine
from mfalcon.engine.ensemble import EnsembleOptions, MemberOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailure,
    InvalidInput,
    Overloaded,
    TooFewMembers,
)
from mfalcon.history.history import Reading
from mfalcon.merging.merge import Calibration, Merge
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config_features import ContextFeature
from mfalcon.rerank.order import reranked
from mfalcon.types import (
    MERGE_METHODS,
    Append,
    DenseFeatures,
    EnsembleInfo,
    MemberInfo,
    MergeMethod,
    RankResult,
    Rerank,
    TaskInfo,
)
from tests.engine.elsewhere import Elsewhere, Mode
from tests.engine.replicas import value
from tests.small import random_events, rank_request, small_checkpoint, small_config, task_model

A = small_checkpoint("dfgr", torch.float32, 0)
B = replace(small_checkpoint("hstu", torch.float32, 0), fingerprint="version-of-b")
C = replace(small_checkpoint("dfgr", torch.float32, 2), fingerprint="version-of-c")
DIN = replace(small_checkpoint("din", torch.float32, 0), fingerprint="version-of-din")
ITEMS = [*A.items.item_id[:20].tolist(), 5_000_000]
REQUEST = rank_request("ann", ITEMS, top_k=7)
TASKS = (TaskInfo("like", "binary", 1.0), TaskInfo("rating", "regression", 0.05))
SHIFTED = {"like": Calibration(0.9, 0.3), "rating": Calibration(1.1, -0.5)}
BOUND = 1e-6
BUDGET_S = 1.0
"""Enough for the member here on a machine that has other work."""
LONG_S = 60.0
"""A budget that nobody waits for, however busy the machine is."""
WAIT_S = 60.0

Make = Callable[..., Awaitable[Engine]]


def ensemble(
    *members: MemberOptions, budget_s: float = WAIT_S, min_members: int = 1, **options: object
) -> EnsembleOptions:
    return EnsembleOptions("both", members, budget_s=budget_s, min_members=min_members, **options)  # type: ignore[arg-type]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes engines of models by name, and of one ensemble, with a history of ann."""
    made = list[Engine]()

    async def start(options: EnsembleOptions | None = None, **models: Checkpoint) -> Engine:
        named = [(model, RankerOptions(name=name, microbatch=16)) for name, model in models.items()]
        engine = compose_all(named, EngineConfig(threads=2), None, [options] if options is not None else [])
        made.append(engine)
        await asyncio.to_thread(engine.wait_ready, WAIT_S)
        await engine.append_events("ann", Append(random_events(20), 0))
        await engine.start()
        return engine

    yield start
    for engine in made:
        await asyncio.wait_for(engine.close(), WAIT_S)


@dataclass
class World:
    """An engine of a, with b elsewhere."""

    engine: Engine
    elsewhere: Elsewhere

    async def rank(self, deadline_s: float = WAIT_S) -> RankResult:
        return await self.engine.rank(REQUEST, time.monotonic() + deadline_s, "both")

    async def alone(self) -> RankResult:
        return await self.engine.rank(REQUEST, None, "a")

    def count(self, outcome: str, member: str = "b at replica:1") -> float:
        return value(self.engine.metrics, "mfalcon_members_total", ensemble="both", member=member, outcome=outcome)

    async def until(self, outcome: str) -> RankResult:
        """Rank until the member elsewhere ends so."""
        result: RankResult | None = None
        for _ in range(200):
            with contextlib.suppress(TooFewMembers):  # where one needs both, or the machine is very busy
                result = await self.rank()
                if (result.members[1].error.partition(":")[0] or "arrived") == outcome:
                    return result
            await asyncio.sleep(0.02)
        raise AssertionError(result)

    async def nothing_left(self) -> bool:
        """Whether all that was given up is let go of, a few turns of the loop later."""
        for _ in range(200):
            if self.elsewhere.num_waiting == 0 and self.engine.device.num_queued() == 0:
                return True
            await asyncio.sleep(0.02)
        return False


@pytest.fixture
async def world(make: Make) -> World:
    return await a_world(make)


async def a_world(make: Make, budget_s: float = BUDGET_S, min_members: int = 1, **members: Checkpoint) -> World:
    elsewhere = Elsewhere(await make(**(members or {"b": B})))
    options = ensemble(
        MemberOptions("a", 2.0), MemberOptions("b", 1.0, elsewhere), budget_s=budget_s, min_members=min_members
    )
    return World(await make(options, a=A), elsewhere)


def assert_is_merge(
    result: RankResult,
    members: list[RankResult],
    weights: list[float],
    method: MergeMethod = "logit",
    calibration: tuple[Calibration, ...] = (),
) -> None:
    """Online is offline: the answer is the merge of what these members say alone."""
    merged = Merge(method, TASKS, calibration)([member.task_scores for member in members], weights)
    assert np.abs(result.task_scores - merged.task_scores).max() <= BOUND
    assert np.abs(result.scores - merged.scores).max() <= BOUND
    assert result.top.tolist() == merged.top(REQUEST.top_k).tolist()


@pytest.mark.parametrize("method", MERGE_METHODS)
async def test_a_served_merge_is_the_offline_merge(make: Make, method: MergeMethod) -> None:
    options = ensemble(
        MemberOptions("a", 0.5), MemberOptions("c", 3.0), MemberOptions("b", 1.5), merge=method, calibration=SHIFTED
    )
    engine = await make(options, a=A, b=B, c=C)
    for request in (REQUEST, REQUEST, replace(REQUEST, recent_events=random_events(24)[20:])):
        result = await engine.rank(request, None, "both")
        alone = [await engine.rank(request, None, name) for name in ("a", "c", "b")]
        assert_is_merge(result, alone, [0.5, 3.0, 1.5], method, tuple(SHIFTED.values()))
    assert not result.partial_merge and not result.stale
    assert [(m.model, m.weight, m.version, m.arrived) for m in result.members] == [
        (name, weight, one.model_version, True) for name, weight, one in zip("acb", (0.5, 3.0, 1.5), alone, strict=True)
    ]
    assert result.model_version == "+".join(one.model_version for one in alone)
    assert result.cache.reused_tokens == sum(one.cache.reused_tokens for one in alone)
    assert result.unknown.tolist() == sorted({at for one in alone for at in one.unknown.tolist()})
    assert alone[0].unknown.tolist() == [20] != result.unknown.tolist()  # c has another item table
    assert [list(m.unknown) for m in result.members] == [one.unknown.tolist() for one in alone]
    assert result.history_len == 20
    assert 0 < result.timings.merge_us <= result.timings.total_us
    assert value(engine.metrics, "mfalcon_merges_total", ensemble="both", outcome="whole") == 3
    assert value(engine.metrics, "mfalcon_members_total", ensemble="both", member="c", outcome="arrived") == 3


async def test_an_ensemble_is_described_with_its_members(world: World) -> None:
    await world.rank()
    single, info = world.engine.models
    assert info.name == "both" and info.tasks == single.tasks and info.task_infos == TASKS
    other = world.elsewhere.engine.model.version
    assert info.version == f"{single.version}+{other}"
    assert info.ensemble == EnsembleInfo(
        "logit",
        round(1e3 * BUDGET_S),
        1,
        (MemberInfo("a", "", 2.0, single.version), MemberInfo("b", "replica:1", 1.0, other)),
    )
    assert world.engine.models[1] is info  # nothing has changed


async def test_a_ranker_without_states_is_a_member_too(make: Make) -> None:
    engine = await make(ensemble(MemberOptions("din", 1.0), MemberOptions("a", 3.0)), din=DIN, a=A)
    cache = await engine.prefill("ann", None, "both")
    assert (cache.reused_tokens, cache.encoded_tokens) == (0, 20)
    result = await engine.rank(REQUEST, None, "both")
    assert_is_merge(result, [await engine.rank(REQUEST, None, name) for name in ("din", "a")], [1.0, 3.0])
    assert [member.cache.reused_tokens for member in result.members] == [0, 20]
    assert [info.reads_last_events for info in engine.models] == [True, False, False]


async def test_features_go_to_those_who_read_them(make: Make) -> None:
    config = small_config()
    fewer = config.model_copy(
        update={"context_features": config.context_features[1:], "dense_features": config.dense_features[1:]}
    )
    other = small_checkpoint(dtype=torch.float32, seed=3, config=fewer)
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("other", 1.0)), a=A, other=other)
    _, single, info = engine.models
    assert [f.name for f in single.context_features] == ["hour"] and single.dense_features == ("rank_before",)
    assert [f.name for f in info.context_features] == ["surface", "hour"]
    assert info.dense_features == ("price", "rank_before")
    numbers = np.random.default_rng(0).normal(size=(len(ITEMS), 2)).astype(np.float32)
    given = replace(
        REQUEST, context={"surface": 2, "hour": 5}, dense=DenseFeatures(("rank_before", "price"), numbers.ravel())
    )
    result = await engine.rank(given, None, "both")
    whole = await engine.rank(given, None, "a")
    own = replace(given, context={"hour": 5}, dense=DenseFeatures(("rank_before",), numbers[:, 0].copy()))
    assert_is_merge(result, [whole, await engine.rank(own, None, "other")], [1.0, 1.0])


async def test_members_here_share_one_reading_of_the_log(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0)), a=A, b=B)
    readings, right = list[str](), engine.histories.log.read

    async def read(user_id: str, timeout_s: float) -> Reading:
        readings.append(user_id)
        await asyncio.sleep(0.01)
        return await right(user_id, timeout_s)

    monkeypatch.setattr(engine.histories.log, "read", read)
    await engine.rank(REQUEST, None, "both")
    await engine.prefill("ann", None, "both")
    assert readings == ["ann", "ann"]


async def test_it_ranks_without_who_is_frozen_and_with_it_again(world: World) -> None:
    """By the budget at first; then nobody waits for it, and nothing piles up; nobody has to bring it back."""
    alone = await world.alone()
    whole = await world.rank()
    assert not whole.partial_merge
    tasks = len(asyncio.all_tasks())
    world.elsewhere.mode = "frozen"
    for _ in range(3):
        began = time.monotonic()
        result = await world.rank()
        assert time.monotonic() - began >= BUDGET_S
        assert result.partial_merge
        assert_is_merge(result, [alone], [1.0])
        arrived, late = result.members
        assert arrived.arrived and not late.arrived
        assert late.error.startswith("late: no answer within") and late.took_us >= 1e6 * BUDGET_S
    result = await world.until("away")
    began = time.monotonic()
    for _ in range(300):
        result = await world.rank()
        assert_is_merge(result, [alone], [1.0])
    assert (time.monotonic() - began) / 300 < BUDGET_S / 2  # it is not waited for
    assert result.members[1].error.startswith("away: ")
    assert world.elsewhere.num_waiting <= 1 and world.elsewhere.most_waiting <= 2  # a rank and a question
    assert len(asyncio.all_tasks()) <= tasks + 3
    world.elsewhere.mode = "well"
    again = await world.until("arrived")
    assert np.array_equal(again.scores, whole.scores) and not again.partial_merge
    assert world.count("late") >= 3 and world.count("away") >= 300 and world.count("arrived") >= 2


async def test_who_is_away_costs_no_wait_and_comes_back(make: Make) -> None:
    world = await a_world(make, LONG_S)
    alone = await world.alone()
    world.elsewhere.mode = "away"
    for _ in range(5):
        began = time.monotonic()
        result = await world.rank()
        assert time.monotonic() - began < LONG_S
        assert result.members[1].error == "away: nobody listens"
        assert_is_merge(result, [alone], [1.0])
    world.elsewhere.mode = "well"
    assert not (await world.until("arrived")).partial_merge


@pytest.mark.parametrize(("mode", "outcome"), [("overloaded", "overloaded"), ("slow", "late")])
async def test_who_is_busy_is_not_away(world: World, mode: Mode, outcome: str) -> None:
    """So that no request which is too large for a budget parts others from a member."""
    world.elsewhere.mode = mode
    for _ in range(6):
        assert (await world.rank()).members[1].error.startswith(f"{outcome}: ")
    world.elsewhere.mode = "well"
    await world.until("arrived")
    assert world.count("away") == 0


async def test_a_caller_in_a_hurry_parts_nobody_from_a_member(world: World) -> None:
    world.elsewhere.mode = "slow"
    for _ in range(6):
        with contextlib.suppress(DeadlineExceeded):  # a busy machine
            assert (await world.rank(deadline_s=0.1)).members[1].error.startswith("late: ")
    world.elsewhere.mode = "well"
    await world.until("arrived")
    assert world.count("late") == 6 and world.count("away") == 0


async def test_too_few_are_an_error_as_soon_as_that_is_certain(make: Make) -> None:
    world = await a_world(make, LONG_S, min_members=2)
    world.elsewhere.mode = "away"
    began = time.monotonic()
    with pytest.raises(TooFewMembers, match=r"2 of 2 members must answer; without one: b at replica:1 \(away: nobody"):
        await world.rank()
    assert time.monotonic() - began < LONG_S
    assert value(world.engine.metrics, "mfalcon_merges_total", ensemble="both", outcome="too_few") == 1
    assert world.count("given_up", "a") == world.count("away") == 1
    with pytest.raises(TooFewMembers):
        await world.engine.prefill("ann", None, "both")
    world.elsewhere.mode = "well"
    assert not (await world.until("arrived")).partial_merge
    world.elsewhere.mode = "overloaded"
    with pytest.raises(Overloaded, match="the queue is full"):
        await world.rank()


async def test_too_few_by_the_budget_are_an_error_then(make: Make) -> None:
    world = await a_world(make, min_members=2)
    await world.until("arrived")
    world.elsewhere.mode = "slow"
    with pytest.raises(TooFewMembers, match="late: no answer within"):
        await world.rank()
    with pytest.raises(DeadlineExceeded):
        await world.rank(deadline_s=0.05)  # it is the caller's time that is up
    assert await world.nothing_left()
    world.elsewhere.mode = "well"
    assert not (await world.until("arrived")).partial_merge


async def test_whoever_leaves_takes_all_members_back(world: World) -> None:
    await world.rank()
    world.elsewhere.mode = "slow"
    asking = asyncio.create_task(world.rank())
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await world.nothing_left()


def without_score(seed: int, *rows: int) -> Checkpoint:
    """A model that gives items at these rows of the table no finite number."""
    checkpoint = small_checkpoint("dfgr", torch.float32, 0)
    with torch.no_grad():
        next(reversed(list(task_model(checkpoint).heads.mlp.parameters()))).add_(seed)  # the last bias
        task_model(checkpoint).heads.get_parameter("item_bias.weight")[list(rows)] = float("nan")
    return replace(checkpoint, fingerprint=f"poisoned-{seed}-{rows}")


async def test_a_candidate_without_a_score_is_merged_from_the_others(make: Make) -> None:
    one, other = without_score(0, 3, 5), without_score(1, 5)
    engine = await make(ensemble(MemberOptions("a", 2.0), MemberOptions("b", 1.0)), a=one, b=other)
    result = await engine.rank(REQUEST, None, "both")
    assert result.partial_merge
    alone = [await engine.rank(REQUEST, None, name) for name in "ab"]
    assert_is_merge(result, alone, [2.0, 1.0])
    at = {row: int(np.flatnonzero(A.items.rows(REQUEST.candidates) == row)[0]) for row in (3, 5)}
    assert result.failed.tolist() == [at[5]]
    assert [sorted(member.failed) for member in result.members] == [sorted(at.values()), [at[5]]]
    assert abs(result.task_scores[0, at[3]] - alone[1].task_scores[0, at[3]]) <= BOUND
    with pytest.raises(EngineFailure, match="finite"):
        await engine.rank(replace(REQUEST, candidates=REQUEST.candidates[[at[5]]]), None, "both")


async def test_fewer_candidates_of_one_member_are_fewer_of_all(world: World) -> None:
    whole, num = await world.elsewhere.engine.rank(REQUEST, None), 8
    world.elsewhere.changes = {
        "scores": whole.scores[:num],
        "task_scores": whole.task_scores[:, :num],
        "unknown": whole.unknown[:0],
    }
    result = await world.engine.rank(replace(REQUEST, allow_partial=True), None, "both")
    assert result.num_scored == num and not len(result.unknown)
    merged = Merge("logit", TASKS)([(await world.alone()).task_scores[:, :num], whole.task_scores[:, :num]], [2, 1])
    assert np.abs(result.scores - merged.scores).max() <= BOUND
    assert world.elsewhere.asked[-1].allow_partial and world.elsewhere.asked[-1].top_k == 0


async def test_only_one_history_is_merged(world: World) -> None:
    await world.elsewhere.engine.append_events("ann", Append(random_events(21)[20:], 20))
    result = await world.rank()
    assert result.members[1].error == "outdated: it saw 21 events, the others 20"
    assert_is_merge(result, [await world.alone()], [1.0])
    await world.engine.append_events("ann", Append(random_events(21)[20:], 20))
    assert not (await world.rank()).partial_merge


@pytest.mark.parametrize(
    ("num_tasks", "num", "filled", "why"),
    [
        (2, 5, 0.5, "shape (2, 5) for 21 candidates"),
        (1, 21, 0.5, "shape (1, 21)"),
        (2, 22, 0.5, "(2, 22)"),
        (2, 0, 0.5, "(2, 0)"),
        (2, 21, np.nan, "no finite numbers"),
        (2, 21, np.inf, "no finite numbers"),
    ],
)
async def test_what_is_no_answer_spoils_no_merge(
    world: World, num_tasks: int, num: int, filled: float, why: str
) -> None:
    scores = np.full((num_tasks, num), filled, dtype=np.float32)
    world.elsewhere.changes = {"task_scores": scores, "scores": np.zeros(num, dtype=np.float32)}
    result = await world.rank()
    assert result.members[1].error.startswith("failed: it answers with") and why in result.members[1].error
    assert_is_merge(result, [await world.alone()], [1.0])


async def test_recent_events_older_than_the_log_are_the_callers_error(world: World) -> None:
    with pytest.raises(InvalidInput, match="recent_events"):
        await world.engine.rank(replace(REQUEST, recent_events=random_events(2)), None, "both")


async def test_what_all_members_elsewhere_refuse_as_the_callers_is_the_callers(make: Make) -> None:
    remotes = [Elsewhere(await make(b=B), address=f"replica:{at}") for at in range(2)]
    engine = await make(ensemble(*(MemberOptions("b", 1.0, remote) for remote in remotes)), a=A)
    old = replace(REQUEST, recent_events=random_events(2))
    with pytest.raises(InvalidInput, match=r"^recent_events\[0\].time_ms: got \d+, must be at least") as refused:
        await engine.rank(old, None, "both")
    assert type(refused.value) is InvalidInput
    assert refused.value.field == "recent_events[0].time_ms" and refused.value.limit.startswith("at least ")
    remotes[1].mode = "away"
    with pytest.raises(TooFewMembers, match="failed: recent_events"):
        await engine.rank(old, None, "both")


def of_other_tasks() -> Checkpoint:
    config = small_config().model_copy(update={"blend": {"like": 1.0, "rating": 0.5}})
    return replace(small_checkpoint(dtype=torch.float32, seed=5, config=config), fingerprint="version-of-d")


async def test_a_reload_of_a_member_is_one_of_the_ensemble(make: Make) -> None:
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0)), a=A, b=B)
    before = await engine.rank(REQUEST, None, "both")
    with pytest.raises(ConfigError, match=r"ensemble both: a and b cannot be merged: their tasks.*blend 0.5"):
        await engine.reload("b", of_other_tasks)
    assert np.array_equal((await engine.rank(REQUEST, None, "both")).scores, before.scores)
    await engine.reload("b", lambda: C)
    after = await engine.rank(REQUEST, None, "both")
    assert_is_merge(after, [await engine.rank(REQUEST, None, name) for name in "ab"], [1.0, 1.0])
    assert after.members[1].version == C.fingerprint[:12] != before.members[1].version
    assert engine.models[-1].version == after.model_version


async def test_another_version_elsewhere_is_looked_at_before_it_is_merged(world: World) -> None:
    before = await world.rank()
    await world.elsewhere.engine.reload("b", lambda: C)
    after = await world.rank()
    assert not after.partial_merge and after.members[1].version == C.fingerprint[:12] != before.members[1].version
    await world.elsewhere.engine.reload("b", of_other_tasks)
    result = await world.rank()
    assert result.members[1].error.startswith("disagrees: ensemble both: a and b at replica:1 cannot be merged")
    assert_is_merge(result, [await world.alone()], [1.0])
    await world.elsewhere.engine.reload("b", lambda: B)
    assert np.array_equal((await world.until("arrived")).scores, before.scores)


async def test_what_cannot_be_merged_does_not_start(make: Make) -> None:
    both = ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0))
    with pytest.raises(ConfigError, match="ensemble both: a and b cannot be merged"):
        await make(both, a=A, b=of_other_tasks())
    with pytest.raises(ConfigError, match="ensemble both: members: model: got 'b', must be 'a'"):
        await make(both, a=A)
    with pytest.raises(ConfigError, match="'both' twice"):
        await make(both, a=A, b=B, both=C)
    with pytest.raises(ConfigError, match="a is a member twice"):
        await make(ensemble(MemberOptions("a", 1.0), MemberOptions("a", 1.0)), a=A)
    with pytest.raises(ConfigError, match="calibration is given for task view, must be like, rating"):
        await make(replace(both, calibration={"view": Calibration()}), a=A, b=B)
    with pytest.raises(ConfigError, match="a and b at replica:1 cannot be merged"):
        await a_world(make, b=of_other_tasks())


async def test_a_replica_that_comes_later_is_found(make: Make) -> None:
    elsewhere = Elsewhere(await make(b=B), mode="away")
    options = ensemble(MemberOptions("a", 2.0), MemberOptions("b", 1.0, elsewhere), budget_s=BUDGET_S)
    world = World(await make(options, a=A), elsewhere)
    assert world.engine.models[1].version.endswith("+?")
    assert (await world.rank()).members[1].error.startswith("away: ")
    elsewhere.mode = "well"
    assert not (await world.until("arrived")).partial_merge
    assert world.engine.models[1].version.endswith(f"+{elsewhere.engine.model.version}")


async def test_the_top_of_a_merge_may_be_diverse(world: World) -> None:
    plain = await world.rank()
    wish = Rerank("mmr", 0.7, depth=15)
    result = await world.engine.rank(replace(REQUEST, rerank=wish), None, "both")
    likeness, rows = world.engine.catalog.default.likeness, A.items.rows(REQUEST.candidates)
    picked = reranked(plain.scores, None, 7, wish, lambda positions: likeness.among(rows[positions]))
    assert result.top.tolist() == picked.tolist() != plain.top.tolist()
    assert np.array_equal(result.scores, plain.scores) and len(result.members) == 2
    assert value(world.engine.metrics, "mfalcon_reranks_total", model="both", method="mmr", outcome="done") == 1


async def test_without_a_member_here_there_is_no_likeness(make: Make) -> None:
    remotes = [Elsewhere(await make(b=B), address=f"replica:{at}") for at in range(2)]
    engine = await make(ensemble(*(MemberOptions("b", 1.0, remote) for remote in remotes)), a=A)
    result = await engine.rank(REQUEST, None, "both")
    assert_is_merge(result, [await remotes[0].engine.rank(REQUEST, None)], [1.0])
    with pytest.raises(InvalidInput, match="rerank: got 'mmr', must be absent"):
        await engine.rank(replace(REQUEST, rerank=Rerank("mmr", 0.5)), None, "both")
    await engine.close()
    assert all(remote.closed for remote in remotes)


async def test_a_prefill_is_of_every_member(world: World) -> None:
    cache = await world.engine.prefill("ann", None, "both")
    assert cache.encoded_tokens == 20 + 40  # dfgr has a token an event, hstu two
    result = await world.rank()
    assert result.cache.encoded_tokens == 0 and result.cache.reused_tokens == 60


async def test_it_is_a_part_of_the_trace(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(mfalcon.spans, "_tracer", provider.get_tracer("test"))
    await world.rank()
    assert not exporter.get_finished_spans()  # its caller is not traced
    with provider.get_tracer("test").start_as_current_span("caller"):
        await world.rank()
    spans = exporter.get_finished_spans()
    assert {"merge", "rank", "log", "queue", "score"} <= {span.name for span in spans}
    told = {(span.attributes or {})["mfalcon.member"]: span for span in spans if span.name == "member"}
    assert set(told) == {"a", "b at replica:1"}
    assert all((span.attributes or {})["mfalcon.outcome"] == "arrived" for span in told.values())


async def test_a_single_model_tells_of_no_members() -> None:
    engine = compose(A, EngineConfig(threads=1, ranker=RankerOptions(microbatch=16)))
    result = await engine.rank(REQUEST, None)
    assert result.members == () and not result.partial_merge and result.timings.merge_us == 0
    assert engine.model.ensemble is None and engine.model.task_infos == TASKS
    await engine.close()


async def test_nothing_of_a_model_that_was_exchanged_is_kept(make: Make) -> None:
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0)), a=A, b=B)
    await engine.rank(REQUEST, None, "both")
    old = weakref.ref(engine.catalog.get("a").cache)
    await engine.reload("a", lambda: DIN)
    await engine.rank(REQUEST, None, "both")
    gc.collect()
    assert old() is None
    await engine.reload("a", lambda: C)
    after = await engine.rank(REQUEST, None, "both")
    assert_is_merge(after, [await engine.rank(REQUEST, None, name) for name in "ab"], [1.0, 1.0])


async def test_who_leaves_at_once_leaves_nothing_that_never_ran(make: Make, recwarn: pytest.WarningsRecorder) -> None:
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0)), a=A, b=B)
    with pytest.raises((DeadlineExceeded, TooFewMembers)):
        await engine.rank(REQUEST, time.monotonic() - 1.0, "both")
    with pytest.raises((DeadlineExceeded, TooFewMembers)):
        await engine.prefill("ann", time.monotonic() - 1.0, "both")
    await asyncio.sleep(0)
    gc.collect()
    assert [str(warning.message) for warning in recwarn] == []


async def test_two_reloads_at_once_leave_what_can_be_merged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await make(ensemble(MemberOptions("a", 1.0), MemberOptions("b", 1.0)), a=of_surfaces(0), b=of_surfaces(0))
    serve = engine.device.serve

    def slowly(*args: Any) -> None:
        time.sleep(0.3)  # on the device thread: meanwhile the other one comes as far
        serve(*args)

    monkeypatch.setattr(engine.device, "serve", slowly)
    reloads = (engine.reload(name, partial(of_surfaces, num)) for name, num in (("a", 3), ("b", 5)))
    ended = await asyncio.gather(*reloads, return_exceptions=True)
    assert [type(each) for each in ended if isinstance(each, Exception)] == [ConfigError]
    assert len(engine.models[-1].context_features) == 1
    result = await engine.rank(replace(REQUEST, context={"surface": 2}), None, "both")
    assert not result.partial_merge and not len(result.failed)


def of_surfaces(num: int) -> Checkpoint:
    """A model that reads a context feature of so many values; none for 0."""
    features = (ContextFeature(name="surface", num_values=num),) if num else ()
    config = small_config().model_copy(update={"context_features": features})
    return replace(small_checkpoint(dtype=torch.float32, config=config), fingerprint=f"version-of-{num}-surfaces")

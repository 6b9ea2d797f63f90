"""The counters of a served model: what the logs say, whoever appends, deletes or reloads; scores follow from them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mfalcon.counters.increments import counted, numbers
from mfalcon.engine.compose import EngineConfig, compose
from mfalcon.engine.engine import Engine
from mfalcon.engine.histories import HistoryOptions
from mfalcon.engine.ranker import RankerOptions
from mfalcon.errors import ConfigError
from mfalcon.features.counters import LikeRule
from mfalcon.history.history import History
from mfalcon.models.config import RankerConfig, Task
from mfalcon.models.config_features import COUNTERS
from mfalcon.types import Append, Events, Ids
from tests.engine.replicas import value
from tests.small import cold_scores, random_events, rank_request, small_checkpoint, small_config

CONFIG = small_config(with_counters=True)
CHECKPOINT = small_checkpoint(config=CONFIG)
ITEMS = CHECKPOINT.items.item_id
LIKE = LikeRule.of(CONFIG)
OPTIONS = EngineConfig(
    threads=1,
    ranker=RankerOptions(microbatch=16),
    histories=HistoryOptions(log_max_events=64, log_slack=32, max_counted_items=1_000),
)
BOUND = 2e-6
SECONDS = 60


def expected(logs: Sequence[Events], items: Ids, like: LikeRule = LIKE) -> Ids:
    """A recount of whole histories: int64 [num_items, 3]."""
    added = counted(np.concatenate([random_events(0), *logs]), like)
    found = dict(zip(added["item_id"].tolist(), numbers(added), strict=True))
    return np.array([found.get(item, np.zeros(3, np.int64)) for item in items.tolist()])


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = compose(CHECKPOINT, OPTIONS)
    engine.wait_ready(SECONDS)
    await engine.start()
    yield engine
    await asyncio.wait_for(engine.close(), SECONDS)


async def append(engine: Engine, user_id: str, events: Events) -> None:
    for first in range(0, len(events), 7):
        await engine.append_events(user_id, Append(events[first : first + 7], first))


def now(engine: Engine, items: Ids = ITEMS) -> Ids:
    return engine.histories.counters.read(items).numbers[LIKE]


async def assert_right(engine: Engine, user_id: str, history: Events, logs: Sequence[Events]) -> None:
    """A rank scores by the counters that a recount of the logs gives."""
    for recent in (random_events(0), random_events(3, 9, int(history["time_ms"][-1]) if len(history) else 10**12)):
        request = rank_request(user_id, ITEMS[:9].tolist(), recent=recent)
        result = await engine.rank(request, None)
        truth = cold_scores(engine.catalog.default.checkpoint, history, request, expected(logs, request.candidates))
        assert np.abs(result.task_scores - truth.numpy()).max() <= BOUND
        assert not result.counters_stale and result.timings.features_us > 0


async def test_every_acknowledged_event_is_counted_once_and_a_deletion_takes_its_user_out(engine: Engine) -> None:
    logs = {f"user-{n}": random_events(n * 25, seed=n) for n in range(5)}  # the longest are cut
    versions = []
    for user_id, events in logs.items():
        await append(engine, user_id, events)
        versions.append((await engine.rank(rank_request("nobody", [1]), None)).counters_version)
    assert sorted(set(versions)) == versions
    np.testing.assert_array_equal(now(engine), expected(list(logs.values()), ITEMS))
    for user_id, events in logs.items():
        await assert_right(engine, user_id, events, list(logs.values()))
    await engine.delete_user("user-4")
    await engine.delete_user("user-4")
    gone = logs.pop("user-4")
    np.testing.assert_array_equal(now(engine), expected(list(logs.values()), ITEMS))
    await append(engine, "user-4", gone[:9])
    await assert_right(engine, "user-4", gone[:9], [*logs.values(), gone[:9]])
    for user_id in (*logs, "user-4"):
        await engine.delete_user(user_id)
    assert not now(engine).any()


async def test_a_refused_append_counts_nothing(engine: Engine) -> None:
    events = random_events(10)
    await append(engine, "ann", events)
    before = now(engine)
    for wrong in (engine.append_events("ann", Append(events, 3)), engine.append_events("ann", Append(events[:1]))):
        with pytest.raises(Exception, match=r"expected|older|at least"):
            await wrong
    np.testing.assert_array_equal(now(engine), before)


async def test_appends_at_once_are_counted_once_each(engine: Engine) -> None:
    logs = {f"user-{n}": random_events(60, seed=n) for n in range(4)}
    await asyncio.gather(*(append(engine, user_id, events) for user_id, events in logs.items()))
    np.testing.assert_array_equal(now(engine), expected(list(logs.values()), ITEMS))


async def test_a_reload_keeps_the_counters_and_one_with_other_likes_counts_the_logs(engine: Engine) -> None:
    events = random_events(50, seed=3)
    await append(engine, "ann", events)
    again = small_checkpoint(config=CONFIG, seed=1)
    await engine.reload("", lambda: again)
    assert num_stores(engine) == 1
    await assert_right(engine, "ann", events, [events])
    other = by_action(CONFIG)
    await engine.reload("", lambda: small_checkpoint(config=other, seed=1))
    (store,) = engine.histories.counters.stores
    assert store.like == LikeRule(None, 0b010)
    np.testing.assert_array_equal(store.read(ITEMS), expected([events], ITEMS, store.like))
    await engine.reload("", small_checkpoint)
    assert num_stores(engine) == 0
    assert (await engine.rank(rank_request("ann", [1]), None)).counters_version == 0


def num_stores(engine: Engine) -> int:
    return len(engine.histories.counters.stores)


def by_action(config: RankerConfig) -> RankerConfig:
    like = Task(name="like", kind="binary", any_action=("like",))
    return config.model_copy(update={"tasks": (like, *config.tasks[1:])})


async def test_items_that_no_model_knows_are_counted_for_the_one_that_will(engine: Engine) -> None:
    events = random_events(30)
    await append(engine, "ann", events)
    unknown = np.array([5_000_000, 77])
    np.testing.assert_array_equal(now(engine, unknown), expected([events], unknown))
    assert now(engine, unknown)[0, 0] > 0


async def test_there_is_a_limit_of_items_and_what_it_leaves_out_is_never_taken_out() -> None:
    options = replace(OPTIONS, histories=replace(OPTIONS.histories, max_counted_items=5))
    engine = compose(CHECKPOINT, options)
    engine.wait_ready(SECONDS)
    many, few = random_events(60, seed=1), random_events(4, seed=2)
    await append(engine, "ann", many)
    counted_items = np.flatnonzero(now(engine).any(1))
    assert 0 < len(counted_items) <= 5
    await append(engine, "bob", few)
    await engine.delete_user("ann")
    assert (now(engine) >= 0).all()
    await engine.delete_user("bob")
    assert not now(engine).any()
    await engine.close()


async def test_the_model_tells_that_it_reads_counters(engine: Engine) -> None:
    assert engine.model.counters == COUNTERS
    without = compose(small_checkpoint(), OPTIONS)
    assert without.model.counters == ()
    await without.close()


def test_counters_that_look_back_further_than_the_log_are_refused() -> None:
    options = replace(OPTIONS, histories=HistoryOptions(log_max_events=32))
    longer = CONFIG.model_copy(
        update={"counters": CONFIG.counters and CONFIG.counters.model_copy(update={"max_events": 33})}
    )
    with pytest.raises(ConfigError, match="must be at least 33, the events that count"):
        compose(small_checkpoint(config=longer), options)


def shuffled(events: Events, seed: int) -> Events:
    """The events as a stream brings them: some a few places late."""
    return events[np.argsort(np.arange(len(events)) + np.random.default_rng(seed).uniform(0, 9, len(events)))]


async def test_events_that_are_inserted_are_counted_once_and_the_others_not_again(engine: Engine) -> None:
    """The longest histories are cut meanwhile; what is discarded because it is older than all that is left is not
    counted.
    """
    logs = {f"user-{n}": shuffled(random_events(n * 25, seed=n), n) for n in range(1, 5)}
    kept: dict[str, list[Events]] = {user_id: [] for user_id in logs}
    for first in range(0, 100, 3):
        for user_id, events in logs.items():
            some = events[first : first + 3]
            if len(some):
                told = await engine.append_events(user_id, Append(some, late_events="insert"))
                kept[user_id].append(np.delete(some, told.discarded))
                counts = [events for user_logs in kept.values() for events in user_logs]
                np.testing.assert_array_equal(now(engine), expected(counts, ITEMS))
    assert (await history(engine, "user-4")).base > 0
    for user_id in logs:
        await engine.delete_user(user_id)
    assert not now(engine).any()


async def test_an_insert_that_was_not_counted_is_found_by_its_link(engine: Engine) -> None:
    """As where two appends to a log that waits for its disk are told of in another order than they were done."""
    events = random_events(40, seed=3)
    events["time_ms"] += np.arange(40)
    log = engine.histories.log
    await append(engine, "ann", events[5:30])
    await log.append("ann", Append(events[:5], late_events="insert"), None)
    await engine.append_events("ann", Append(events[30:35], late_events="insert"))
    np.testing.assert_array_equal(now(engine), expected([events[:35]], ITEMS))
    assert value(engine.metrics, "mfalcon_counters_recounted_total", how="whole") == 1
    await log.append("ann", Append(np.repeat(events[39:], 90)), None)
    await engine.append_events("ann", Append(events[39:]))
    assert (await history(engine, "ann")).base > 0
    late = np.repeat(events[39:], 2)
    late["time_ms"] -= 1
    await log.append("ann", Append(late, late_events="insert"), None)
    await engine.append_events("ann", Append(events[39:]))  # whose turn it was cannot be told: the last three are taken
    assert value(engine.metrics, "mfalcon_counters_recounted_total", how="guess") == 1
    assert now(engine)[:, 0].sum() == expected([events[:35], np.repeat(events[39:], 94)], ITEMS)[:, 0].sum()


async def history(engine: Engine, user_id: str) -> History:
    return (await engine.histories.log.read(user_id, 1)).history

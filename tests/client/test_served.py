"""Both clients against the server itself, on real sockets, with an engine whose scores can be computed by hand."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from mfalcon.types import MAX_TIME_MS
from mfalcon.types import Rerank as Wish
from mfalcon_client import (
    EVENT_DTYPE,
    Append,
    Appended,
    CacheSource,
    DeadlineExceeded,
    Event,
    InvalidArgument,
    KeptState,
    NotFound,
    Rerank,
    Retry,
    Unavailable,
    VersionConflict,
)
from tests.client.either import MakeClient
from tests.server.fake_engine import FAILING_ITEM, MODEL, OTHER, like_scores
from tests.server.harness import FREE_PORTS, Running, serving

THREE = np.array([(181, 16, 5.0, 1_000), (50, 1, -0.5, 1_000), (7, 0, 0.0, 2_000)], dtype=EVENT_DTYPE)
TOO_MANY = 16_385


@pytest.fixture
async def served() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


@pytest.fixture
async def client(make: MakeClient, served: Running) -> AsyncIterator[Any]:
    async with make(served.addresses.grpc, timeout_s=60.0) as client:
        yield client


async def test_ranks_are_arrays(client: Any, served: Running) -> None:
    candidates = np.array([3, 1, 2**62, FAILING_ITEM, -5, 3], dtype=np.int64)
    ranking = await client.rank("ann", candidates, top_k=2, model="other")
    expected = like_scores(candidates, 0)
    assert ranking.scores.dtype == ranking.task_scores.dtype == np.float32
    np.testing.assert_array_equal(ranking.scores, expected)
    np.testing.assert_array_equal(ranking.task_scores, [expected, expected + 2])
    np.testing.assert_array_equal(ranking.top, np.argsort(-expected, kind="stable")[:2])
    np.testing.assert_array_equal(candidates[ranking.unknown], [2**62, -5])
    np.testing.assert_array_equal(candidates[ranking.failed], [FAILING_ITEM])
    assert ranking.top.dtype == ranking.unknown.dtype == ranking.failed.dtype == np.int64
    assert (ranking.tasks, ranking.num_scored, ranking.stale) == (MODEL.tasks, 6, False)
    assert (ranking.model_version, ranking.history_len) == (OTHER.version, 0)
    assert ranking.cache.source is CacheSource.HOST
    assert (ranking.timings.queue_us, ranking.timings.total_us) == (1, 10)


async def test_a_top_may_be_reranked(client: Any, served: Running) -> None:
    ranking = await client.rank("ann", [1, 2, 3], top_k=2, rerank=Rerank("mmr", 0.5, depth=7, tail_weight=0.25))
    assert (ranking.rerank_skipped, ranking.timings.rerank_us, ranking.timings.features_us) == ("late", 5, 8)
    assert (ranking.counters_version, ranking.counters_stale) == (2**40, False)
    assert (await client.rank("ann", [1], allow_partial=True)).counters_stale
    served.engine.requests.pop()
    assert not (await client.rank("ann", [1])).rerank_skipped
    assert [request.rerank for request in served.engine.requests] == [Wish("mmr", 0.5, 7, 0.25), None]
    with pytest.raises(InvalidArgument, match=r"rerank\.tail_weight: .* model other does not say how often"):
        await client.rank("ann", [1], rerank=Rerank("mmr", 0.5, tail_weight=0.25), model="other")
    with pytest.raises(InvalidArgument, match=r"rerank\.depth"):
        await client.rank("ann", [1], rerank=Rerank("mmr", 0.5, 1_001))
    with pytest.raises(InvalidArgument, match="rerank"):
        await client.rank("ann", [1], rerank="mmr")


@pytest.mark.parametrize(
    "events",
    [THREE, [Event(item, time_ms, actions, value) for item, actions, value, time_ms in THREE.tolist()]],
)
async def test_events_are_arrays_or_objects(client: Any, served: Running, events: Any) -> None:
    three = await client.append_events("ann", events)
    assert three == Appended(3, version=three.version) and len(three.version) == 16
    four = await client.append_events("ann", events[2:], expected_len=3, expected_version=three.version)
    assert four == Appended(4, version=four.version)
    np.testing.assert_array_equal(served.engine.histories["ann"][:3], THREE)
    assert (await client.prefill("ann")).encoded_tokens == 4
    ranking = await client.rank("ann", [1], recent_events=events[2:], request_time_ms=5_000, allow_partial=True)
    assert (ranking.history_len, ranking.history_version) == (4, four.version)
    request = served.engine.requests[-1]
    np.testing.assert_array_equal(request.recent_events, THREE[2:])
    assert (request.request_time_ms, request.allow_partial) == (5_000, True)
    with pytest.raises(VersionConflict) as conflict:
        await client.append_events("ann", events, expected_len=3)
    assert (conflict.value.history_len, conflict.value.outcome_unknown) == (4, False)
    with pytest.raises(VersionConflict, match=f"expected_version: got {three.version.hex()}, the history has 4 events"):
        await client.append_events("ann", events, expected_len=4, expected_version=three.version)
    await client.delete_user("ann")
    assert "ann" not in served.engine.histories
    await client.delete_user("ann")


async def test_appends_of_several_users_have_an_outcome_each(client: Any, served: Running) -> None:
    appends = [Append("ann", THREE, append_id="1"), Append("bob", THREE[:1], expected_len=7), Append("", THREE)]
    ann, bob, nobody = await client.append_batch(appends)
    assert ann == Appended(3, version=ann.version) and len(ann.version) == 16
    assert isinstance(bob, VersionConflict) and (bob.history_len, len(bob.history_version)) == (0, 16)
    assert isinstance(nobody, InvalidArgument) and not nobody.outcome_unknown
    (again,) = await client.append_batch(appends[:1])
    assert again == dataclasses.replace(ann, was_found=True)
    assert set(served.engine.histories) == {"ann"}
    with pytest.raises(InvalidArgument, match="appends: got 0"):
        await client.append_batch([])
    with pytest.raises(InvalidArgument, match="append_id"):
        await client.append_batch([Append("ann", THREE, append_id="\ud800")])


async def test_a_history_is_read_back(client: Any, served: Running) -> None:
    told = await client.append_events("ann", THREE)
    page = await client.get_history("ann", 1, limit=1, with_states=True)
    np.testing.assert_array_equal(page.events, THREE[1:2])
    assert (page.first, page.next_first, page.history_len, page.base, page.stale) == (1, 2, 3, 0, False)
    assert page.version == told.version != page.page_version
    assert page.states == (KeptState("fake", CacheSource.HOST, 0, 3, 6, 2**33, fits=True),)
    rest = await client.get_history("ann", page.next_first, expected_version=page.version)
    np.testing.assert_array_equal(rest.events, THREE[2:])
    assert (rest.page_version, rest.states) == (told.version, ())
    await client.append_events("ann", THREE[2:])
    with pytest.raises(VersionConflict) as conflict:
        await client.get_history("ann", expected_version=told.version)
    assert (conflict.value.history_len, conflict.value.outcome_unknown) == (4, False)
    for wrong in ({"limit": 1_001}, {"first": -1}, {"expected_version": b"7"}, {"expected_version": "7"}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            await client.get_history("ann", **wrong)


async def test_models_are_described(client: Any, served: Running) -> None:
    model = await client.get_model()
    for name in ("name", "version", "architecture", "tasks", "actions", "dense_features", "counters", "max_history"):
        assert getattr(model, name) == getattr(MODEL, name)
    assert model.counts_items and not (await client.get_model("other")).counts_items
    assert (model.prefix_stable, model.backend) == (MODEL.prefix_stable, MODEL.backend)
    assert [(f.name, f.num_values, f.values, f.derived) for f in model.context_features] == [
        ("gender", 2, ("F", "M"), False),
        ("hour", 24, (), True),
    ]
    assert [m.name for m in await client.list_models()] == [MODEL.name, OTHER.name]
    assert (await client.get_model("other")).version == OTHER.version
    await client.prefill("ann", model="other")
    assert served.engine.asked_of == ["other"]
    with pytest.raises(NotFound, match="din"):
        await client.get_model("din")


async def test_features_are_columns(client: Any, served: Running) -> None:
    ages = np.arange(4)[::-2]
    for features in ({"price": [0.5, -1.5], "age": ages}, {"price": np.array([0.5, -1.5]), "age": ages.astype("u1")}):
        await client.rank("ann", [1, 2], features=features)
        dense = served.engine.requests[-1].dense
        assert dense.names == ("price", "age")
        assert dense.values.tolist() == [0.5, 3.0, -1.5, 1.0]
    many = np.arange(16_384) / 7
    await client.rank("ann", np.arange(16_384), features={"age": many, "price": -many})
    values = served.engine.requests[-1].dense.values
    np.testing.assert_array_equal(values, np.stack([many, -many], axis=1).astype(np.float32).ravel())


def ids(*values: object) -> Any:
    return np.array(values)


BAD_RANKS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    (("ann", []), {}),
    (("ann", np.empty(0)), {}),
    (("ann", np.arange(TOO_MANY)), {}),
    (("ann", ids(1.0, 2.0)), {}),
    (("ann", ids(True, False)), {}),
    (("ann", ids("1", "")), {}),
    (("ann", ["a", 2**63]), {}),
    (("ann", ["a", 1.5]), {}),
    (("ann", [["a"], ["b"]]), {}),
    (("ann", [1, None]), {}),
    (("ann", [[1], [1, 2]]), {}),
    (("ann", np.ones((2, 2), dtype=np.int64)), {}),
    (("ann", np.int64(3)), {}),
    (("ann", [2**63]), {}),
    (("ann", [2**70]), {}),
    (("ann", np.array([2**63], dtype=np.uint64)), {}),
    (("", [1]), {}),
    (("\udcff", [1]), {}),
    ((b"\xff\xfe", [1]), {}),
    ((7, [1]), {}),
    (("a\nb", [1]), {}),
    (("a" * 257, [1]), {}),
    (("ann", [1]), {"top_k": -1}),
    (("ann", [1]), {"top_k": 1.5}),
    (("ann", [1]), {"request_time_ms": MAX_TIME_MS + 1}),
    (("ann", [1]), {"context": {"gender": 9}}),
    (("ann", [1]), {"context": {"gender": "F"}}),
    (("ann", [1]), {"features": {"weight": [1.0]}}),
    (("ann", [1]), {"features": {"price": [1.0, 2.0]}}),
    (("ann", [1]), {"features": {"price": 1.0}}),
    (("ann", [1]), {"features": {"price": ["1"]}}),
    (("ann", [1]), {"features": {"price": [None]}}),
    (("ann", [1]), {"features": {"price": [float("nan")]}}),
    (("ann", [1]), {"features": {"price": [1e39]}}),
    (("ann", [1]), {"features": {"price": np.ma.masked_array([1.0], [True])}}),
    (("ann", [1]), {"features": {"\udcff": [1.0]}}),
    (("ann", [1]), {"features": {7: [1.0]}}),
    (("ann", [1]), {"model": "other", "features": {"price": [1.0]}}),
    (("ann", [1]), {"model": "\udcff"}),
    (("ann", [1]), {"recent_events": THREE[::-1]}),
    (("ann", [1]), {"recent_events": np.zeros(3)}),
]


async def test_ranks_that_cannot_be(client: Any) -> None:
    for arguments, options in BAD_RANKS:
        with pytest.raises(InvalidArgument) as failure:
            await client.rank(*arguments, **options)
        assert failure.value.code == "INVALID_ARGUMENT"
        assert len(failure.value.details) < 300


def changed(name: str, value: object) -> Any:
    events = THREE.copy()
    events[name][1] = value
    return events


BAD_EVENTS: list[Any] = [
    [],
    THREE[:0],
    THREE[::-1],
    THREE.reshape(3, 1),
    changed("value", np.nan),
    changed("value", np.inf),
    changed("time_ms", 0),
    changed("time_ms", MAX_TIME_MS + 1),
    np.zeros(3, dtype=EVENT_DTYPE.newbyteorder(">")),
    np.zeros(3, dtype=[("item_id", "<i8"), ("time_ms", "<i8")]),
    [Event(1, 1_000, value=float("nan"))],
    [Event(1, 1_000, value=1e300)],
    [Event(2**63, 1_000)],
    [Event(1, 1_000, actions=-1)],
    [Event(1, 1_000, actions=2**32)],
    [Event(1.5, 1_000)],  # type: ignore[arg-type]
    [(1, 2, 3, 4)],
    [THREE],
]


async def test_events_that_cannot_be(client: Any, served: Running) -> None:
    for events in BAD_EVENTS:
        with pytest.raises(InvalidArgument) as failure:
            await client.append_events("ann", events, expected_len=0, late_events="reject")
        assert not failure.value.outcome_unknown
    assert not served.engine.histories


async def test_an_expected_length_that_cannot_be(client: Any) -> None:
    for wrong in (-1, 1.5, "3"):
        with pytest.raises(InvalidArgument, match="expected_len"):
            await client.append_events("ann", THREE, expected_len=wrong)


async def test_the_most_candidates_pass(client: Any) -> None:
    candidates = np.arange(TOO_MANY - 1)
    assert (await client.rank("ann", candidates, top_k=TOO_MANY)).top.shape == (TOO_MANY - 1,)


async def test_a_deadline_reaches_the_server(client: Any, served: Running) -> None:
    served.engine.gate.clear()
    with pytest.raises(DeadlineExceeded):
        await client.rank("ann", [1], timeout_s=0.2)


async def test_a_time_that_is_none(client: Any, make: MakeClient) -> None:
    for wrong in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(InvalidArgument, match="timeout_s"):
            await client.rank("ann", [1], timeout_s=wrong)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="hedge_after_s"):
            make("127.0.0.1:1", hedge_after_s=wrong)


async def test_many_at_once(client: Any) -> None:
    calls = [client.rank(f"user-{n}", [n + 1], timeout_s=60.0) for n in range(64)]
    rankings = await asyncio.gather(*calls)
    for number, ranking in enumerate(rankings):
        np.testing.assert_array_equal(ranking.scores, like_scores(np.array([number + 1]), 0))


async def test_a_server_that_restarts_is_found_again(make: MakeClient) -> None:
    patient = Retry(attempts=10_000, first_wait_s=0.01, most_wait_s=0.01, budget=1_000_000)
    async with serving() as first:
        address = first.addresses.grpc
        client = make(address, retry=patient, timeout_s=60.0)
        await client.rank("ann", [1])
    port = int(address.rpartition(":")[2])
    meanwhile = asyncio.create_task(client.rank("ann", [1]))
    async with serving(grpc_port=port), client:
        await meanwhile
        await client.rank("ann", [1])


async def test_it_waits_until_a_server_is_ready(make: MakeClient) -> None:
    async with make(f"127.0.0.1:{FREE_PORTS['grpc_port'] or 1}") as client:
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await client.wait_ready(0.2)
    async with serving() as served, make(served.addresses.grpc) as client:
        await client.wait_ready(60)

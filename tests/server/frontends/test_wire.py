"""What crosses between the processes comes out as it went in."""

import dataclasses

import numpy as np
import pytest

from mfalcon.errors import EngineFailure, HistoryMismatch, InvalidInput, MFalconError, Overloaded, StorageUnavailable
from mfalcon.load import Load
from mfalcon.types import (
    EVENT_DTYPE,
    CacheInfo,
    CacheSource,
    DenseFeatures,
    HistoryPage,
    HistoryRequest,
    KeptState,
    RankRequest,
    RankResult,
    Rerank,
    Timings,
    no_events,
)
from server.frontends import answers, questions, rankings, wire
from server.frontends.message import Message
from tests.server.fake_engine import MEMBERS, MODEL, OTHER

EVENTS = np.array([(7, 3, 4.5, 1_000), (-(2**63), 2**32 - 1, -0.0, 2**62)], dtype=EVENT_DTYPE)


@pytest.mark.parametrize("rerank", [None, Rerank("mmr", 0.5, 7, 0.25)])
@pytest.mark.parametrize("events", [no_events(), EVENTS])
@pytest.mark.parametrize("num_candidates", [0, 1, 77])
def test_a_request(num_candidates: int, events: "np.typing.NDArray[np.void]", rerank: Rerank | None) -> None:
    candidates = np.arange(num_candidates)[::-1] * -(2**55)
    request = RankRequest(
        "Zoë \N{OUTLINED WHITE STAR}",
        candidates,
        2**32 - 1,
        2**62,
        events,
        {"gender": 1},
        allow_partial=True,
        recompute=True,
        returns="top",
        exclude_unknown=True,
        exclude_seen=True,
        rerank=rerank,
        dense=DenseFeatures(("price", "age"), np.arange(2 * num_candidates, dtype=np.float32)),
    )
    message = wire.decode_question(wire.encode(questions.Rank.of(2**40, request, 1.5, "m")))
    assert isinstance(message, questions.Rank)
    assert (message.call, message.deadline, message.model) == (2**40, 1.5, "m")
    arrived = message.request()
    assert arrived.dense.names == request.dense.names
    assert np.array_equal(arrived.dense.values, request.dense.values) and arrived.dense.values.dtype == np.float32
    for field in dataclasses.fields(RankRequest):
        assert field.name == "dense" or np.array_equal(getattr(arrived, field.name), getattr(request, field.name))
    assert arrived.candidates.dtype == np.int64
    assert arrived.recent_events.dtype == EVENT_DTYPE


@pytest.mark.parametrize("num_candidates", [1, 77])
@pytest.mark.parametrize("tasks", [("like",), ("like", "rating")])
def test_a_result(num_candidates: int, tasks: tuple[str, ...]) -> None:
    scores = np.linspace(-3e38, 3e38, num_candidates, dtype=np.float32)
    result = RankResult(
        scores=scores,
        tasks=tasks,
        task_scores=np.stack([scores - 1] * len(tasks))[:, ::-1],  # no row of it lies in one piece
        top=np.array([num_candidates - 1], dtype=np.uint32),
        model_version="v",
        cache=CacheInfo(CacheSource.REDIS, 1, 2),
        timings=Timings(1, 2, 3, 4, 5, 6, 7, 8),
        history_len=2**40,
        unknown=np.empty(0, dtype=np.uint32),
        stale=True,
        failed=np.array([0], dtype=np.uint32),
        rerank_skipped="failed",
        members=MEMBERS,
        partial_merge=True,
        counters_version=2**50,
        counters_stale=True,
        candidates=np.arange(num_candidates),
        candidate_texts=("é",) * num_candidates,
    )
    message = wire.decode_answer(wire.encode(rankings.Ranked.of(1, result)))
    assert isinstance(message, rankings.Ranked)
    arrived = message.result()
    assert arrived.num_scored == num_candidates
    for field in dataclasses.fields(RankResult):
        one, other = getattr(arrived, field.name), getattr(result, field.name)
        assert np.array_equal(one, other) and getattr(one, "dtype", None) == getattr(other, "dtype", None)


@pytest.mark.parametrize("version", [None, bytes(range(16))])
def test_a_wish_for_a_page(version: bytes | None) -> None:
    request = HistoryRequest("Zoë", 2**64 - 1, 7, version, with_states=True)
    message = wire.decode_question(wire.encode(questions.GetHistory(3, request, 1.5)))
    assert isinstance(message, questions.GetHistory)
    assert (message.call, message.request, message.deadline) == (3, request, 1.5)


@pytest.mark.parametrize("events", [no_events(), EVENTS])
def test_a_page(events: "np.typing.NDArray[np.void]") -> None:
    state = KeptState("m", CacheSource.REDIS, 2**40, 5, 10, 2**50, fits=True)
    page = HistoryPage(
        2**41, bytes(range(16)), 32, 2**40, events, bytes(16), stale=True, states=(state,), texts=("é", "")
    )
    message = wire.decode_answer(wire.encode(answers.Page.of(1, page)))
    assert isinstance(message, answers.Page)
    arrived = message.page()
    assert arrived.events.dtype == EVENT_DTYPE
    for field in dataclasses.fields(HistoryPage):
        assert np.array_equal(getattr(arrived, field.name), getattr(page, field.name))


def test_a_status() -> None:
    status = answers.Status(0, wire.SERVING, ready=True, models=(MODEL, OTHER), load=Load(1.25, 2.5, is_full=True))
    assert wire.decode_answer(wire.encode(status)) == status


class Special(EngineFailure):
    """Not in the tree of mfalcon/errors.py."""


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("candidates[3]", "x" * 200, "1 to 3 candidates"),
        HistoryMismatch.of_len(3, 2**40, bytes(16)),
        Overloaded("the queue is full", retry_after_s=0.25),
        StorageUnavailable("no Redis; 'quoted' \ud800".encode(errors="replace").decode(), may_be_done=True),
        *(kind("why") for kind in MFalconError.__subclasses__() if kind.__init__ is MFalconError.__init__),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_very_same(error: MFalconError) -> None:
    message = wire.decode_answer(wire.encode(answers.Failed.of(1, error)))
    assert isinstance(message, answers.Failed)
    arrived = message.error()
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))


def test_another_error_travels_as_what_it_is_a_kind_of() -> None:
    assert type(answers.Failed.of(1, Special("why")).error()) is EngineFailure


@pytest.mark.parametrize(
    ("word", "message"), [(RankRequest, questions.Rank), (RankResult, rankings.Ranked), (HistoryPage, answers.Page)]
)
def test_no_part_of_a_request_or_a_result_is_left_behind(word: type, message: type[Message]) -> None:
    assert {field.name for field in dataclasses.fields(word)} <= set(message.__struct_fields__)

"""An engine asked over a pipe answers as the engine itself, whatever becomes of either side."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zmq

from mfalcon.errors import (
    EngineFailure,
    HistoryMismatch,
    InvalidInput,
    MFalconError,
    NotReady,
    Overloaded,
    ShuttingDown,
    StorageUnavailable,
)
from mfalcon.load import Load
from mfalcon.types import EVENT_DTYPE, Append, Appended, HistoryRequest, RankRequest, UserAppend, no_events
from server.frontends import answers, questions, rankings, wire
from server.frontends.engine_server import EngineServer
from server.frontends.remote import RemoteEngine
from tests.server.fake_engine import MODEL, OTHER, FakeEngine

EVENTS = np.array([(7, 3, 4.5, 1_000), (8, 1, 0.5, 2_000)], dtype=EVENT_DTYPE)


@dataclass(frozen=True, slots=True)
class Joined:
    """Both ends of a pipe."""

    engine: FakeEngine
    server: EngineServer
    remote: RemoteEngine
    endpoint: str


async def until(holds: Callable[[], object]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def all_answered(engine: FakeEngine, server: EngineServer, number: int) -> bool:
    """So many, and nobody waits."""
    return len(engine.requests) == number and server.num_calls == 0


@asynccontextmanager
async def connected(endpoint: str, name: str) -> AsyncIterator[RemoteEngine]:
    """A front-end's end."""
    remote = RemoteEngine(endpoint, name, lambda status: None)
    remote.say_listening()
    yield remote
    remote.close()


@pytest.fixture
async def joined(tmp_path: Path) -> AsyncIterator[Joined]:
    endpoint, engine = f"ipc://{tmp_path}/engine", FakeEngine()
    server = EngineServer(endpoint, scrape=lambda open_metrics: b"open" if open_metrics else b"all")
    async with connected(endpoint, "0.1") as remote:
        server.serve(engine)
        await until(lambda: remote.ready)
        yield Joined(engine, server, remote, endpoint)
        await server.close()


def rank_request(user_id: str = "ann", num_candidates: int = 77) -> RankRequest:
    return RankRequest(user_id, np.arange(num_candidates) + 1_950, 5, 3_000, no_events(), {"gender": 1})


async def test_every_verb_answers_as_the_engine(joined: Joined) -> None:
    remote, engine = joined.remote, joined.engine
    assert remote.models == (MODEL, OTHER)
    assert (await remote.append_events("ann", Append(EVENTS, 0), None)).history_len == 2
    assert np.array_equal(engine.histories["ann"], EVENTS)
    both = [UserAppend("ann", Append(EVENTS, 0)), UserAppend("bob", Append(EVENTS[:1], append_id="b"))]
    refused, told = await remote.append_batch(both, None)
    assert isinstance(refused, HistoryMismatch) and refused.history_len == 2
    assert isinstance(told, Appended)
    assert await engine.append_batch(both[1:], None) == [dataclasses.replace(told, was_written=True)]
    await remote.delete_user("bob", None)
    deadline = time.monotonic() + 60
    answer = await remote.rank(rank_request(), deadline, "other")
    assert (engine.deadlines, engine.asked_of) == ([deadline], ["other"])
    right = await engine.rank(rank_request(), None, "other")
    assert rankings.Ranked.of(0, answer) == rankings.Ranked.of(0, right)
    asked = HistoryRequest("ann", 1, 5, with_states=True)
    assert answers.Page.of(0, await remote.get_history(asked, None)) == answers.Page.of(
        0, await engine.get_history(asked, None)
    )
    assert (await remote.prefill("ann", None, "fake")).encoded_tokens == 2
    await remote.delete_user("ann", None)
    assert not engine.histories
    assert await remote.scrape() == b"all" and await remote.scrape(open_metrics=True) == b"open"


async def test_one_that_is_not_heard_is_told_of_once_and_not_for_our_own_standstill(tmp_path: Path) -> None:
    endpoint, met, frozen = f"ipc://{tmp_path}/engine", list[str](), list[str]()
    server = EngineServer(endpoint, met.append, frozen=frozen.append, patience_s=1.0)
    async with connected(endpoint, "0.1"), connected(endpoint, "1.1") as loud:
        await until(lambda: len(met) == 2)
        time.sleep(1.5)  # noqa: ASYNC251 (we stand still)
        await asyncio.sleep(0)
        assert not frozen

        def has_frozen() -> bool:
            loud.beat()
            return bool(frozen)

        await until(has_frozen)
        assert frozen == ["0.1"]
        await server.close()


async def test_many_calls_at_once_get_their_own_answers(joined: Joined) -> None:
    async with connected(joined.endpoint, "1.1") as second:
        await until(lambda: second.ready)
        sizes = range(1, 401)
        answers = await asyncio.gather(
            *((joined.remote, second)[size % 2].rank(rank_request(num_candidates=size), None) for size in sizes)
        )
        assert [len(answer.scores) for answer in answers] == list(sizes)


@pytest.mark.parametrize(
    "fault",
    [
        InvalidInput("recent_events[0].time_ms", 3, "later"),
        HistoryMismatch.of_len(3, 4, bytes(16)),
        StorageUnavailable("no Redis", may_be_done=True),
        Overloaded("try again"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_is_raised_as_it_was(joined: Joined, fault: MFalconError) -> None:
    joined.engine.fault = fault
    with pytest.raises(type(fault)) as raised:
        await joined.remote.rank(rank_request(), None)
    assert (str(raised.value), vars(raised.value)) == (str(fault), vars(fault))


async def test_a_defect_is_an_answer_too(joined: Joined, caplog: pytest.LogCaptureFixture) -> None:
    joined.engine.fault = ZeroDivisionError("oops")
    with pytest.raises(EngineFailure, match="its log has the cause") as of_rank:
        await joined.remote.rank(rank_request(), None)
    assert "oops" in caplog.text
    writes = (joined.remote.append_events("ann", Append(EVENTS), None), joined.remote.delete_user("ann", None))
    for write in writes:
        with pytest.raises(EngineFailure) as of_write:
            await write
        assert of_write.value.may_be_done
    assert not of_rank.value.may_be_done


async def test_a_caller_that_leaves_cancels_the_work(joined: Joined) -> None:
    joined.engine.gate.clear()
    call = asyncio.create_task(joined.remote.rank(rank_request(), None))
    await joined.engine.entered.wait()
    call.cancel()
    async with asyncio.timeout(60):
        await joined.engine.cancelled.acquire()
    joined.engine.gate.set()
    assert (await joined.remote.rank(rank_request("bob"), None)).scores.size  # an answer to nobody harms nobody


async def test_the_calls_of_a_front_end_that_died_are_cancelled_and_no_others(joined: Joined) -> None:
    joined.engine.gate.clear()
    async with connected(joined.endpoint, "1.1") as dying:
        call = asyncio.create_task(joined.remote.rank(rank_request(), None))
        lost = [asyncio.create_task(dying.rank(rank_request("bob"), None)) for _ in range(3)]
        await asyncio.sleep(0)
        await until(lambda: joined.server.num_calls == 4)
        joined.server.forget("1.1")
        await until(lambda: joined.engine.num_cancelled == 3)
        joined.engine.gate.set()
        assert (await call).scores.size
        for task in lost:
            task.cancel()


async def test_who_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    """A frozen process: what does not fit in its queue is dropped, and the others are answered."""
    endpoint, engine = f"ipc://{tmp_path}/engine", FakeEngine()
    server = EngineServer(endpoint, most_waiting=2)
    server.serve(engine)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    frozen = context.socket(zmq.DEALER)
    frozen.rcvhwm, frozen.linger, frozen.routing_id = 1, 0, b"0.1"
    frozen.connect(endpoint)
    frozen.send(wire.encode(questions.Hello(0)))
    for call in range(1, 17):  # one after the other: none shares a bundle
        frozen.send(wire.encode(questions.Rank.of(call, rank_request(num_candidates=100_000), None, "")))
        await until(partial(all_answered, engine, server, call))
    async with connected(endpoint, "1.1") as remote:
        assert (await remote.rank(rank_request(), None)).scores.size
    arrived = 0
    while frozen.poll(500):
        arrived += sum(isinstance(wire.decode_answer(one), rankings.Ranked) for one in frozen.recv_multipart())
    assert 0 < arrived < 16
    context.destroy(linger=0)
    await server.close()


async def test_the_status_is_told_when_it_changes(tmp_path: Path) -> None:
    endpoint, engine, heard = f"ipc://{tmp_path}/engine", FakeEngine(), list[str]()
    server = EngineServer(endpoint)
    remote = RemoteEngine(endpoint, "0.1", lambda status: heard.append(status.phase))
    remote.say_listening()
    await until(lambda: heard)
    assert not remote.ready and not remote.models
    with pytest.raises(NotReady, match="still loading"):
        await remote.rank(rank_request(), None)
    server.wait_for_redis()
    await until(lambda: heard[-1] == "waiting for Redis")
    server.serve(engine)
    await until(lambda: remote.ready)
    engine.ready = False
    await until(lambda: not remote.ready)
    remote.close()
    await server.close()


async def test_what_must_come_too_late_is_refused_without_asking(joined: Joined) -> None:
    now = time.monotonic()
    joined.engine.load = Load(free_at=now + 3_600, last_due=now + 600)
    await until(lambda: joined.remote.load == joined.engine.load)
    with pytest.raises(Overloaded, match=r"deadline: got \d+ ms, must be at least \d+ ms behind") as refused:
        await joined.remote.rank(rank_request(), now + 1_800)
    assert refused.value.retry_after_s is not None and 1_790 < refused.value.retry_after_s < 1_810
    with pytest.raises(Overloaded):
        await joined.remote.prefill("ann", now + 1_800)
    assert not joined.engine.num_entered
    await joined.remote.rank(rank_request(), now + 300)  # it may go before others: the engine judges
    await joined.remote.rank(rank_request(), None)
    joined.engine.load = Load()
    await until(lambda: joined.remote.load == Load())
    await joined.remote.rank(rank_request(), now + 1_800)


async def test_an_engine_that_ends_leaves_nobody_waiting(joined: Joined) -> None:
    joined.engine.gate.clear()
    call = asyncio.create_task(joined.remote.rank(rank_request(), None))
    await joined.engine.entered.wait()
    joined.remote.lose("the engine's process has ended")
    with pytest.raises(StorageUnavailable, match="has ended; it may have done this call") as lost:
        await call
    assert lost.value.may_be_done
    assert not joined.remote.ready
    with pytest.raises(ShuttingDown, match="the engine's process has ended; ask another one"):
        await joined.remote.rank(rank_request(), None)


async def test_a_message_that_is_none_costs_no_call_that_came_with_it(
    joined: Joined, caplog: pytest.LogCaptureFixture
) -> None:
    with zmq.Context[zmq.Socket[bytes]]() as context, context.socket(zmq.DEALER) as broken:
        broken.linger = 0
        broken.routing_id = b"0.2"
        broken.connect(joined.endpoint)
        rank = wire.encode(questions.Rank.of(1, rank_request("bob"), None, ""))
        broken.send_multipart([wire.encode(questions.Hello(0)), b"\xc1", b"", rank[:-9], rank])
        await until(lambda: [request.user_id for request in joined.engine.requests] == ["bob"])
    assert (await joined.remote.rank(rank_request(), None)).num_scored == 77
    assert {record.message for record in caplog.records} == {"a front-end sent a message that is none of ours"}

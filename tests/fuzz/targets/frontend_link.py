"""Any bytes as a message between a front-end and the engine's process, in either direction."""

import msgspec
import numpy as np

from mfalcon.load import Load
from mfalcon.types import (
    Appended,
    CacheInfo,
    CacheSource,
    HistoryPage,
    HistoryRequest,
    RankRequest,
    RankResult,
    Timings,
)
from server.frontends import wire
from tests.server.fake_engine import MODEL
from tests.small import random_events

CACHE = CacheInfo(CacheSource.HOST, 1, 2)


def seeds() -> list[bytes]:
    """A message of each kind."""
    events = random_events(3)
    request = RankRequest("eve", np.arange(4), 2, 5, events, {"hour": 3})
    scores = np.arange(4, dtype=np.float32)
    result = RankResult(
        scores=scores,
        tasks=("like", "rating"),
        task_scores=np.stack((scores, scores)),
        top=np.arange(2, dtype=np.uint32),
        model_version="v",
        cache=CACHE,
        timings=Timings(1, 2, 3, 4, 10),
        history_len=3,
        unknown=np.arange(1, dtype=np.uint32),
    )
    page = HistoryPage(3, bytes(16), 0, 0, events, bytes(16), stale=False, states=())
    questions: list[wire.Question] = [
        wire.Rank.of(1, request, 2.0, "fake"),
        wire.GetHistory(3, HistoryRequest("eve", 0, 9, None, True), None),
        wire.Prefill(4, "eve", None, ""),
        wire.DeleteUser(5, "eve", 1.0),
        wire.Cancel(6),
        wire.Hello(0),
        wire.Scrape(7),
    ]
    answers: list[wire.Answer] = [
        wire.Ranked.of(1, result),
        wire.Written(2, Appended(3, bytes(16))),
        wire.Page.of(3, page),
        wire.Prefilled(4, CACHE),
        wire.Failed(5, "Overloaded", "too much", {"retry_after_s": 1.0, "elsewhere": False}),
        wire.Status(0, wire.SERVING, True, (MODEL,), Load()),
    ]
    return [b"\0" + wire.encode(each) for each in questions] + [b"\1" + wire.encode(each) for each in answers]


def target(data: bytes) -> None:
    """Decodes, or raises what both ends expect of msgspec; arrays whose bytes are none raise ValueError."""
    if not data:
        return
    try:
        if data[0] % 2 == 0:
            _use_question(wire.decode_question(data[1:]))
        else:
            _use_answer(wire.decode_answer(data[1:]))
    except (msgspec.MsgspecError, ValueError):
        return


def _use_question(question: wire.Question) -> None:
    match question:
        case wire.Rank():
            question.request()
        case wire.AppendEvents():
            question.append()


def _use_answer(answer: wire.Answer) -> None:
    match answer:
        case wire.Ranked():
            answer.result()
        case wire.Page():
            answer.page()
        case wire.Failed():
            str(answer.error())

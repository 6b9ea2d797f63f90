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
from server.frontends import answers, questions, rankings, wire
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
    asked: list[questions.Question] = [
        questions.Rank.of(1, request, 2.0, "fake"),
        questions.GetHistory(3, HistoryRequest("eve", 0, 9, None, True), None),
        questions.Prefill(4, "eve", None, ""),
        questions.DeleteUser(5, "eve", 1.0),
        questions.Cancel(6),
        questions.Hello(0),
        questions.Scrape(7),
    ]
    told: list[answers.Answer] = [
        rankings.Ranked.of(1, result),
        answers.Written(2, Appended(3, bytes(16))),
        answers.Page.of(3, page),
        answers.Prefilled(4, CACHE),
        answers.Failed(5, "Overloaded", "too much", {"retry_after_s": 1.0, "elsewhere": False}),
        answers.Status(0, wire.SERVING, True, (MODEL,), Load()),
    ]
    return [b"\0" + wire.encode(each) for each in asked] + [b"\1" + wire.encode(each) for each in told]


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


def _use_question(question: questions.Question) -> None:
    match question:
        case questions.Rank():
            question.request()
        case questions.AppendEvents():
            question.append()


def _use_answer(answer: answers.Answer) -> None:
    match answer:
        case rankings.Ranked():
            answer.result()
        case answers.Page():
            answer.page()
        case answers.Failed():
            str(answer.error())

"""Every bad input gets the answer of the table, stores nothing and leaves the next request untouched."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from proto import ranking_pb2
from tests.server.bad_input.cases import Case, HttpCase
from tests.server.bad_input.making import LAST_TIME_MS, USER, stored_history
from tests.server.bad_input.served import WatchedEngine, serving_the_table
from tests.server.bad_input.table import CASES, answers, as_markdown
from tests.server.harness import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = ranking_pb2.RankRequest(user_id=USER, candidates=[5, 6], request_time_ms=LAST_TIME_MS + 1)
DOC = Path(__file__).parents[2] / "docs" / "bad-input.md"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Served[WatchedEngine]]:
    async with serving_the_table() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def good_scores(shared: Served[WatchedEngine]) -> list[float]:
    return list((await shared.stub.Rank(GOOD)).scores)


def case_id(case: Case) -> str:
    return f"{type(case).__name__}-{case.call[:20]}-{case.shown}".replace(" ", "-")


@pytest.mark.parametrize("case", CASES, ids=case_id)
async def test_answer(shared: Served[WatchedEngine], good_scores: list[float], case: Case) -> None:
    num_ranks = shared.engine.num_ranks

    answer = await case.send(shared)

    assert answer.code == case.code
    assert case.says in answer.message
    if isinstance(case, HttpCase):
        assert answer.status == case.status
        if case.status == 422:
            assert answer.field
            assert answer.message.startswith(answer.field)

    assert shared.engine.num_users == 1
    stored = (await shared.engine.histories.log.read(USER, 1.0)).history.events
    np.testing.assert_array_equal(stored, stored_history())
    if "older than" not in case.shown:
        assert shared.engine.num_ranks == num_ranks, "the engine saw it"

    good = await shared.stub.Rank(GOOD)
    assert good.history_len == 1
    np.testing.assert_allclose(good.scores, good_scores, rtol=1e-6)


def without_messages(table: str) -> list[str]:
    """Messages are held above; some come from libraries, whose next version may word them otherwise."""
    return [line.split(": ")[0] for line in table.splitlines() if line.startswith("| ")]


async def test_document_is_fresh(shared: Served[WatchedEngine]) -> None:
    table = as_markdown(await answers(shared))
    assert without_messages(DOC.read_text()) == without_messages(table), (
        "run: python -m tests.server.bad_input > docs/bad-input.md"
    )

"""Every bad input gets the answer of the table, stores nothing and leaves the next request untouched."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from proto import ranking_pb2
from tests.server import bad_input
from tests.server.fake_engine import like_scores
from tests.server.harness import Running, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

DOC = Path(__file__).parents[2] / "docs" / "bad-input.md"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared() -> AsyncIterator[Running]:
    async with serving() as running:
        running.engine.histories[bad_input.USER] = bad_input.stored_history()
        yield running


def case_id(case: bad_input.Case) -> str:
    return f"{type(case).__name__}-{case.call[:20]}-{case.shown}".replace(" ", "-")


@pytest.mark.parametrize("case", bad_input.CASES, ids=case_id)
async def test_answer(shared: Running, case: bad_input.Case) -> None:
    num_requests = len(shared.engine.requests)

    answer = await case.send(shared)

    assert answer.code == case.code
    assert case.says in answer.message
    if isinstance(case, bad_input.HttpCase):
        assert answer.status == case.status
        if case.status == 422:
            assert answer.field
            assert answer.message.startswith(answer.field)

    stored = shared.engine.histories
    assert list(stored) == [bad_input.USER]
    np.testing.assert_array_equal(stored[bad_input.USER], bad_input.stored_history())
    if "older than" not in case.shown:
        assert len(shared.engine.requests) == num_requests, "the engine saw it"

    good = await shared.stub.Rank(ranking_pb2.RankRequest(user_id=bad_input.USER, candidates=[5, 6]))
    np.testing.assert_array_equal(good.scores, like_scores(np.array([5, 6]), 1))


def without_messages(table: str) -> list[str]:
    """Messages are held above; some come from libraries, whose next version may word them otherwise."""
    return [line.split(": ")[0] for line in table.splitlines() if line.startswith("| ")]


async def test_document_is_fresh(shared: Running) -> None:
    table = bad_input.as_markdown(await bad_input.answers(shared))
    assert without_messages(DOC.read_text()) == without_messages(table), (
        "run: python -m tests.server.bad_input > docs/bad-input.md"
    )

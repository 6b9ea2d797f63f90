"""Each test runs with both clients."""

import pytest

from tests.client.either import BOTH, MakeClient


@pytest.fixture(params=BOTH, ids=["threads", "asyncio"])
def make(request: pytest.FixtureRequest) -> MakeClient:
    """Makes a client, to be entered with `async with`."""
    kind: MakeClient = request.param
    return kind

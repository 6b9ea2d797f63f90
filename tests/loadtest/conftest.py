"""The running server of tests/server, for the tools that are its clients, and real Redis for those that use it."""

from collections.abc import AsyncIterator

import pytest

from tests.server.harness import Running, serving


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serving() as server:
        yield server

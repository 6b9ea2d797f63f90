"""A whole process around the fake engine: `python -m tests.server.serve_fake`."""

import asyncio

from server.app import run
from server.config import load_config
from tests.server.fake_engine import FakeEngine
from tests.server.harness import FREE_PORTS


async def main() -> None:
    """Serve until a signal."""
    await run(FakeEngine(), load_config(None, FREE_PORTS))


if __name__ == "__main__":
    asyncio.run(main())

"""`python -m tests.server.bad_input > docs/bad-input.md` writes the table for readers; the tests hold each answer."""

import asyncio

from tests.server.bad_input.served import serving_the_table
from tests.server.bad_input.table import answers, as_markdown


async def main() -> None:
    """Print the table."""
    async with serving_the_table() as running:
        print(as_markdown(await answers(running)), end="")


if __name__ == "__main__":
    asyncio.run(main())

"""Hold a server to its own OpenAPI description with schemathesis: `python -m tests.fuzz.openapi SCHEMATHESIS [...]`.

SCHEMATHESIS is the program; further arguments are its own. The server is in this process, around the small engine.
What the description allows may be refused all the same: no schema says that times ascend, or which actions a model has.
"""

import asyncio
import sys

from tests.server.harness import serving


async def main(program: str, *options: str) -> int:
    """Its exit code: 0 if nothing was found."""
    async with serving(max_message_bytes=2**16, max_candidates=99, max_events_per_append=50) as running:
        url = f"http://{running.addresses.http}/openapi.json"
        arguments = ("run", url, "--checks", "all", "--exclude-checks", "positive_data_acceptance", "--no-color")
        process = await asyncio.create_subprocess_exec(program, *arguments, *options)
        return await process.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))

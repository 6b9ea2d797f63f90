"""The examples of appends in client/README.md, as they stand there, against the server."""

import asyncio
import re
import time
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

from mfalcon_client import Client
from tests.server.harness import serving

README = Path(__file__).parents[2] / "client" / "README.md"


def example() -> str:
    """The code of the section, all of it: blocks are indented by four."""
    section = README.read_text().split("## Append events\n")[1].split("\n## ")[0]
    return "".join(dedent(block) for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", section, re.MULTILINE))


async def test_the_examples_of_appends_do_what_they_say() -> None:
    now = int(time.time() * 1000)
    messages = [
        SimpleNamespace(user_id="bob", item_id=item, time_ms=now - age, actions=1, value=2.0, name=f"topic/0/{offset}")
        for item, age, offset in ((1, 0, 7), (2, 60_000, 8), (1, 0, 7), (2, 60_000, 8))
    ]
    async with serving() as running:
        with Client(running.addresses.grpc, timeout_s=60.0) as client:
            names: dict[str, Any] = {"time": time, "client": client, "messages": messages}
            await asyncio.to_thread(exec, example(), names)
    assert names["done"].was_found and names["done"].inserted == (0,)
    assert running.engine.histories["bob"]["item_id"].tolist() == [2, 1]
    assert running.engine.histories["ann"]["item_id"].tolist() == [181, 50]

"""How long each fault of a language model holds up who waits for it: python -m tests.rerank.time_faults, on a machine
that does nothing else. What is late may take its timeout and 5 ms.
"""

import asyncio
import time

from mfalcon.rerank.language_model import LanguageModel, LanguageModelOptions, Skipped
from mfalcon.rerank.prompt import Item
from tests.rerank.openai_server import FAULTS, Answer, openai_server, reversed_order

ITEMS: list[Item] = [{"number": number, "title": f"Title {number}"} for number in range(1, 21)]
TIMEOUT_S, ROUNDS = 0.2, 20


async def took(answer: Answer, reason: str) -> float:
    """Milliseconds, of a connection that is new."""
    async with openai_server(answer) as server:
        model = LanguageModel(LanguageModelOptions(server.url, "any", timeout_s=TIMEOUT_S))
        began, given = time.perf_counter(), ""
        try:
            await model.order([], ITEMS, 60)
        except Skipped as skipped:
            given = skipped.reason
        milliseconds = 1e3 * (time.perf_counter() - began)
        await model.close()
    assert given == reason, (given, reason)
    return milliseconds


async def main() -> None:
    """A line for each fault, and one for a good answer."""
    for name, (answer, reason) in {**FAULTS, "a good answer": (reversed_order, "")}.items():
        rounds = sorted([await took(answer, reason) for _ in range(ROUNDS)])
        median, most = rounds[ROUNDS // 2], rounds[-1]
        print(f"{name:20} {reason:15} median {median:7.2f} ms, most {most:7.2f} ms, timeout {1e3 * TIMEOUT_S:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())

"""One event loop for all targets of a process; what goes wrong on it unseen is raised all the same."""

import asyncio
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class Unseen(Exception):
    """Something failed in a callback or a task that nobody waited for."""


@cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def run(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns. Raises Unseen for what the loop alone was told."""
    unseen: list[dict[str, Any]] = []
    loop = _runner().get_loop()
    loop.set_exception_handler(lambda _, told: unseen.append(told))
    result = loop.run_until_complete(work)
    if unseen:
        raise Unseen(unseen[0].get("message")) from unseen[0].get("exception")
    return result


def close() -> None:
    """End the loop; the next target has another one."""
    _runner().close()
    _runner.cache_clear()

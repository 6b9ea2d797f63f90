"""Blocking work in a thread beside the event loop. Nobody waits for it at exit, as for an executor's: storage that
hangs shall not keep a process from ending.
"""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

_NAME = "mfalcon-beside"

T = TypeVar("T")


def beside(work: Callable[[], T]) -> "asyncio.Future[T]":
    """Begin work in a thread of its own. Whoever no longer waits for it does not stop it."""
    future = concurrent.futures.Future[T]()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (the thread's edge: whoever awaits the future gets it)
            future.set_exception(error)

    threading.Thread(target=call, name=_NAME, daemon=True).start()
    return asyncio.wrap_future(future)


def any_beside() -> bool:
    """Whether such work goes on: native code, perhaps, that must not meet an interpreter that is taken down."""
    return any(thread.name == _NAME for thread in threading.enumerate())

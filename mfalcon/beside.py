"""Blocking work in a thread beside the event loop. Nobody waits for it at exit, as for an executor's: storage that
hangs shall not keep a process from ending.
"""

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

_NAME = "mfalcon-beside"
_NICE = 10
"""Of what is done in the background: a tenth of a core where requests want all."""

T = TypeVar("T")


def beside(work: Callable[[], T], *, in_background: bool = False) -> "asyncio.Future[T]":
    """Begin work in a thread of its own. Whoever no longer waits for it does not stop it. in_background: no request
    waits for it, so requests have the cores first.
    """
    future = concurrent.futures.Future[T]()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            if in_background and sys.platform == "linux":  # where a thread has a priority of its own
                _take_priority(_NICE)
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (the thread's edge: whoever awaits the future gets it)
            future.set_exception(error)

    threading.Thread(target=call, name=_NAME, daemon=True).start()
    return asyncio.wrap_future(future)


def _take_priority(nice: int) -> None:
    """Of the calling thread, which has none lower already."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))


def any_beside() -> bool:
    """Whether such work goes on: native code, perhaps, that must not meet an interpreter that is taken down."""
    return any(thread.name == _NAME for thread in threading.enumerate())

"""Threads beside the event loop: what no request waits for leaves the cores to what they wait for."""

import os
import sys
import threading

import pytest

from mfalcon.beside import beside


def own_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux alone")
async def test_what_is_in_the_background_has_a_lower_priority() -> None:
    ours = own_priority()
    assert await beside(own_priority) == ours
    assert await beside(own_priority, in_background=True) == max(10, ours)
    assert own_priority() == ours

"""`mfalcon serve` with one broken part: `python -m loadtest.faults.broken_server FAULT serve [flags]`.

The product has no door for this: a method of one of its classes is exchanged, and then the command line runs as ever.
What is broken, breaks for requests of the user `VICTIM`.
"""

import runpy
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch

from mfalcon.engine.job import RankJob
from mfalcon.engine.runner import Answer, Runner
from mfalcon.history.chain import user_hash
from mfalcon.history.history import History
from mfalcon.kvcache.cache import Found, KVCache
from mfalcon.kvcache.tier import Entry

VICTIM = "victim"
BAD_ITEM = 1_001
"""The item whose weights are no numbers, behind those that anybody else asks for. It is its row too."""

_Patch = tuple[type, str, Callable[..., Any]]


def _met_by_victim(act: Callable[[], object]) -> _Patch:
    """Do something in the step that the victim's request is in."""
    right = Runner.advance

    def advance(runner: Runner, jobs: Sequence[RankJob], seconds: float) -> list[Answer | None]:
        if any(job.request.user_id == VICTIM for job in jobs):
            act()
        return right(runner, jobs, seconds)

    return Runner, "advance", advance


def _device_lost() -> list[_Patch]:
    """As CUDA does: one kernel fails, and every call after it."""
    struck = threading.Event()

    def fail() -> None:
        struck.set()
        raise RuntimeError("a kernel died, and every later one dies")

    def check_device(_: Runner) -> None:
        if struck.is_set():
            fail()

    return [_met_by_victim(fail), (Runner, "check_device", check_device)]


def _step_hangs() -> list[_Patch]:
    return [_met_by_victim(threading.Event().wait)]


def _no_memory() -> list[_Patch]:
    def fail() -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory")

    return [_met_by_victim(fail)]


def _bad_item() -> list[_Patch]:
    """In memory, after the checkpoint was found good."""
    right = Runner.__init__

    def begin(runner: Runner, served: Any, *args: Any, **options: Any) -> None:
        right(runner, served, *args, **options)
        served.model.items.id.weight[BAD_ITEM] = float("nan")

    return [(Runner, "__init__", begin)]


def _bad_state() -> list[_Patch]:
    """The victim's own, the first time that it is found."""
    right, spoilt = KVCache.lookup, threading.Event()

    def lookup(cache: KVCache, history: History, start: int, fetched: Entry | None = None) -> Found | None:
        found = right(cache, history, start, fetched)
        if found is not None and history.user == user_hash(VICTIM) and not spoilt.is_set():
            spoilt.set()
            k, v = found.state.read(0)
            found.state.write(0, k, torch.full_like(v, float("nan")))
        return found

    return [(KVCache, "lookup", lookup)]


FAULTS: dict[str, Callable[[], list[_Patch]]] = {
    "device-lost": _device_lost,
    "step-hangs": _step_hangs,
    "no-memory": _no_memory,
    "bad-item": _bad_item,
    "bad-state": _bad_state,
}

if __name__ == "__main__":
    broken = FAULTS[sys.argv.pop(1)]
    with ExitStack() as stack:
        for owner, name, method in broken():
            stack.enter_context(patch.object(owner, name, method))
        runpy.run_module("mfalcon.cli", run_name="__main__")

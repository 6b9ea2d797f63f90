"""What a process asks of Python."""

import asyncio
import gc
import sys

from server.runtime import new_event_loop, settle


def test_a_loop_of_whichever_kind_runs() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def test_what_lives_is_left_alone_and_threads_take_short_turns() -> None:
    frozen, turn_s = gc.get_freeze_count(), sys.getswitchinterval()
    try:
        settle()
        assert gc.get_freeze_count() > frozen
        assert sys.getswitchinterval() < turn_s
    finally:
        gc.unfreeze()
        sys.setswitchinterval(turn_s)

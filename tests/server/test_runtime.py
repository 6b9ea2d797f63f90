"""What a process asks of Python."""

import asyncio
import gc

from server.runtime import new_event_loop, settle


def test_a_loop_of_whichever_kind_runs() -> None:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


def test_what_lives_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    try:
        settle()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()

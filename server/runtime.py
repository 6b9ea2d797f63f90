"""What a process of ours asks of Python: an event loop, short turns, and to leave alone what lives for long."""

import asyncio
import gc
import sys

_TURN_S = 0.0005
"""A thread that holds the interpreter gives it up after so long if another one wants it. The device thread wants it
back after each operator of torch: by Python's own 5 ms an event loop that is busy with refusals keeps it waiting, and
a fifth of the answers are lost at twice the load (docs/LOG.md).
"""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop for `asyncio.Runner`: uvloop's where that is installed (extra: uvloop), which does the same in less
    time.
    """
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def settle() -> None:
    """What lives now will live long; collections need not look at it again. Threads take short turns from now on."""
    sys.setswitchinterval(_TURN_S)
    gc.collect()
    gc.freeze()

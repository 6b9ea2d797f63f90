"""What a process of ours asks of Python: an event loop, and to leave alone what lives for long."""

import asyncio
import gc


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
    """What lives now will live for long; later collections need not look at it."""
    gc.collect()
    gc.freeze()

"""What work took where it was done: on a device, calls return before anything is computed."""

import time
from typing import Protocol, TypeAlias

import torch

Moment: TypeAlias = float | torch.cuda.Event


class Clock(Protocol):
    """Takes moments of the calling thread's work and tells what lies between them."""

    def now(self) -> Moment:
        """The moment behind all work so far; returns at once."""
        ...

    def seconds(self, began: Moment, ended: Moment) -> float:
        """Between two moments; waits until the second one has come."""
        ...


class HostClock:
    """Where calls return when their work is done."""

    def now(self) -> Moment:
        """See `Clock`."""
        return time.monotonic()

    def seconds(self, began: Moment, ended: Moment) -> float:
        """See `Clock`."""
        assert isinstance(began, float) and isinstance(ended, float)
        return ended - began


class CudaClock:
    """Events on the calling thread's stream."""

    def now(self) -> Moment:
        """See `Clock`."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, began: Moment, ended: Moment) -> float:
        """See `Clock`."""
        assert not isinstance(began, float) and not isinstance(ended, float)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3


def clock_of(device: torch.device) -> Clock:
    """Of the device that computes."""
    return CudaClock() if device.type == "cuda" else HostClock()

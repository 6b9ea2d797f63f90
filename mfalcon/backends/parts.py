"""A request's candidates in parts, a core each, for a model that reads events with each request.

Such a model is a chain of some dozen products of a few hundred rows. With all cores in each of them a microbatch has as
many barriers, whose waiters sleep (`OMP_WAIT_POLICY`): waking them is a good part of a small product, and a neighbour
on one of the cores holds up all of them at every barrier. In parts there is one barrier in the whole call.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from mfalcon.cores import owned_cores
from mfalcon.models.base import EventSide, EventTokens, Reader, Targets
from mfalcon.models.cores import one_core

LEAST: Final = 64
"""Candidates of a part: with fewer, handing them to another thread costs what it wins."""


class InParts:
    """A reader that scores the candidates of a request on as many cores as the calling thread has, a part on each.

    Several threads may use one; one that has a single core is not helped by any other. No score depends on the parts.
    """

    def __init__(self, reader: Reader) -> None:
        """Its threads start when they are first needed, and end with it."""
        self._reader = reader
        self._threads = ThreadPoolExecutor(owned_cores(), "mfalcon-part")

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        return self._reader.read(events, context, time_ms)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        num = len(targets.rows)
        num_parts = min(torch.get_num_threads(), num // LEAST)
        if num_parts <= 1:
            return self._reader.raw(side, targets, microbatch)
        ends = [num * index // num_parts for index in range(num_parts + 1)]
        first, *others = [targets.part(slice(start, stop)) for start, stop in pairwise(ends)]
        is_inference = torch.is_inference_mode_enabled()
        with one_core():
            waiting = [self._threads.submit(self._part, side, part, microbatch, is_inference) for part in others]
            try:
                out = [self._reader.raw(side, first, microbatch)]
                return torch.cat(out + [future.result() for future in waiting])
            finally:  # nobody computes for a call that has ended
                for future in waiting:
                    if not future.cancel():
                        future.exception()

    def _part(self, side: EventSide, targets: Targets, microbatch: int, is_inference: bool) -> Tensor:
        with torch.inference_mode(is_inference), one_core():
            return self._reader.raw(side, targets, microbatch)

"""A model that reads the last events with each request, ready to serve: it has no stack, no pages and no pool."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from mfalcon.backends.choice import AUTO, ON_DEVICE, REFERENCE, choose
from mfalcon.backends.fused import FusedBackend
from mfalcon.backends.lookup import settle_items
from mfalcon.backends.parts import InParts
from mfalcon.backends.request_stack import RequestStack, shape_of
from mfalcon.models.base import EventRanker, EventSide, EventTokens, Reader, Targets
from mfalcon.models.dlrm_v3 import DlrmV3

SPLIT: Final = "split"
"""What is the user's is computed once a request, and what is a candidate's in microbatches."""


@dataclass(frozen=True, slots=True)
class ServedEvents:
    """A model and what computes it. name: of what computes, as it is reported."""

    model: EventRanker
    reader: Reader
    name: str
    unavailable: tuple[str, ...] = ()

    @property
    def batched(self) -> bool:
        """Users are computed one after the other."""
        return False


@dataclass(frozen=True, slots=True)
class _PlainUser:
    events: EventTokens
    context: Tensor
    time_ms: int

    @property
    def num_events(self) -> int:
        return len(self.events.rows)


class PlainReader:
    """The definition as a backend: each candidate with a copy of its user. The oracle of every other one."""

    def __init__(self, model: EventRanker) -> None:
        self._model = model

    def read(self, events: EventTokens, context: Tensor, time_ms: int) -> EventSide:
        """See `Reader`."""
        return _PlainUser(events, context, time_ms)

    def raw(self, side: EventSide, targets: Targets, microbatch: int) -> Tensor:
        """See `Reader`."""
        assert isinstance(side, _PlainUser)
        events = EventTokens(*(getattr(side.events, name).unsqueeze(0) for name in EventTokens.__slots__))
        valid, out = torch.ones_like(events.rows, dtype=torch.bool), []
        for index in torch.arange(len(targets.rows), device=targets.rows.device).split(microbatch):
            part = targets.part(index)
            dense = None if part.dense is None else part.dense.unsqueeze(0)
            one = Targets(part.rows.unsqueeze(0), side.context.expand(1, 1, -1), dense)
            visible = torch.full_like(one.rows, side.num_events)
            times = torch.full_like(visible, side.time_ms)
            out.append(self._model.outputs(events, valid, one, visible, times)[0])
        return torch.cat(out)


def serve_events(model: EventRanker, backend: str = AUTO) -> ServedEvents:
    """Make a model ready: split, with the matrix product of the fused kernel where that is of float32, or its whole
    stack where the model has layers; or as it is defined. Backends that only compute stacks leave it split. On a CPU
    each core takes a part of the candidates.

    Raises BackendUnavailable for a fused kernel that is asked for by name and cannot run here.
    """
    if backend == REFERENCE:
        return ServedEvents(model, PlainReader(model), REFERENCE)
    settle_items(model)
    if model.device.type != "cpu":
        return ServedEvents(model, model.reader(), SPLIT)
    if backend in (SPLIT, *ON_DEVICE):
        return ServedEvents(model, InParts(model.reader()), SPLIT)
    choice = choose(backend, model.device, model.dtype)
    if isinstance(model, DlrmV3) and choice.kernel is not None:
        stack = FusedBackend(choice.kernel, model.stack, shape_of(model))
        return ServedEvents(model, InParts(RequestStack(model, stack)), choice.name, choice.unavailable)
    kernel = choice.kernel if model.dtype == torch.float32 and not model.has_layers else None
    return ServedEvents(
        model, InParts(model.reader(kernel)), SPLIT if kernel is None else choice.name, choice.unavailable
    )

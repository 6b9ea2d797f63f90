"""A model's shapes without its memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_FILL = frozenset(
    {
        torch.Tensor.normal_,
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.xavier_normal_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
    }
)
"""What draws the first weights. Of a tensor without memory the first such call has torch import its compiler, and sympy
with it: a second of processor time, and 100 MB.
"""


class _Unfilled(TorchFunctionMode):
    """Passes over those."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = kwargs or {}
        if func in _FILL:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules that are made meanwhile lie on the meta device, and nobody draws their first weights."""
    with torch.device("meta"), _Unfilled():
        yield

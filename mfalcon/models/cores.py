"""Cores for torch's own operators around a stack: few numbers are quicker on one core than between barriers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SMALL = 250_000
"""Numbers (rows x dim) below which one core is quicker: 1,000 rows of 64 take .3 ms on one core, 1.1 on two."""


@contextmanager
def cores_for(num_numbers: int) -> Iterator[None]:
    """Operators on so many numbers run on one core if that is quicker, else on as many as before. This thread's own."""
    if num_numbers >= _SMALL:
        yield
        return
    with one_core():
        yield


@contextmanager
def one_core() -> Iterator[None]:
    """Operators run on one core, and on as many as before from the end on. This thread's own."""
    cores = torch.get_num_threads()
    if cores == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)

"""Scoring in fixed shapes, recorded once as a CUDA graph each and replayed: no Python and no launches in between.

A shape is a number of rows; users, pages and tiles are padded to its limits, and what pads is user -1 to every kernel.
What does not fit a shape is computed as it is. Nothing is recorded in a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from kernels.paged import Batch, BatchSizes, pack, to_device, unpacked

Run: TypeAlias = Callable[[Tensor, Batch, Tensor], Tensor]
"""Rows x [num_rows, dim], their batch and its users' times -> [num_rows, dim]."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one shape: rows of a replay, its users and their pages together."""

    num_rows: int
    num_users: int
    num_pages: int


class Graph:
    """One shape: buffers that keep their place, and what was recorded over them."""

    def __init__(self, run: Run, limits: Limits, tile_rows: int, splits: int, dim: int, like: Tensor) -> None:
        """like: of the dtype and device of the rows."""
        self.limits = limits
        self.tile_rows = tile_rows
        # Every user may leave its last tile part empty.
        num_tiles = -(-limits.num_rows // tile_rows) + limits.num_users - 1
        self._sizes = BatchSizes(limits.num_users, limits.num_pages, num_tiles)
        self._x = like.new_zeros(limits.num_rows, dim)
        self._packed = torch.from_numpy(pack([], [], [], tile_rows, self._sizes)).to(like.device)
        self._times = torch.zeros(limits.num_users, dtype=torch.int64, device=like.device)
        batch = unpacked(self._packed, self._sizes, tile_rows, splits)
        self._again = _recorded(lambda: run(self._x, batch, self._times), like.device)

    def __call__(
        self, x: Tensor, num_rows: Sequence[int], lens: Sequence[int], pages: Sequence[Sequence[int]], times: np.ndarray
    ) -> Tensor:
        """Rows x [sum(num_rows), dim] of users within the limits; the result is good until the next call."""
        packed = pack(num_rows, lens, pages, self.tile_rows, self._sizes)
        padded = np.zeros(self.limits.num_users, dtype=np.int64)
        padded[: len(times)] = times
        self._x[: len(x)] = x
        self._packed.copy_(to_device(packed, x.device))
        self._times.copy_(to_device(padded, x.device))
        return self._again()[: len(x)]


def _recorded(run: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What runs it again and gives its result. Off CUDA nothing is recorded: it is run, over the same buffers."""
    if device.type != "cuda":
        return run
    run()  # compiles what is not compiled, which must not be recorded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def again() -> Tensor:
        graph.replay()
        return out

    return again

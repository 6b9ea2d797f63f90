"""Scores and appends in fixed shapes, recorded once as a CUDA graph each and replayed: no Python and no launches in
between.

A shape is a number of rows; rows, users, pages and tiles are padded to its limits, and what pads is user -1 to every
kernel: it is computed and written nowhere. A replay launches what was recorded, splits without work too, so a shape is
recorded for each number of splits that its prefixes may call for. What fits no shape is computed as it is. Nothing is
recorded in a request.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from kernels.paged import Batch, BatchSizes, pack, to_device, unpacked

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

Run: TypeAlias = Callable[[Tensor, Batch, Tensor], Tensor]
"""Rows x [num_rows, dim], their batch and times, of its users or of the rows -> [num_rows, dim]."""
Memory: TypeAlias = "_POOL_HANDLE | None"
"""Names a pool of memory that graphs may share, as one of them is replayed at a time; None for one of its own."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one shape: rows of a replay, its users and their pages together."""

    num_rows: int
    num_users: int
    num_pages: int

    def hold(self, num_rows: int, num_users: int, num_pages: int) -> bool:
        """Whether so many of each are within the limits."""
        return num_rows <= self.num_rows and num_users <= self.num_users and num_pages <= self.num_pages


def smallest(graphs: "Sequence[Graph]", num_rows: int, num_users: int, num_pages: int) -> "Sequence[Graph]":
    """Of graphs in ascending order those of the first shape with room for so many: they differ in splits alone."""
    fitting = [graph for graph in graphs if graph.limits.hold(num_rows, num_users, num_pages)]
    return [graph for graph in fitting if graph.limits == fitting[0].limits]


def with_work(graphs: "Sequence[Graph]", splits: int) -> "Graph":
    """Of graphs of one shape that with the most splits, but no more than so many."""
    return max((graph for graph in graphs if graph.splits <= splits), key=lambda graph: graph.splits, default=graphs[0])


class Graph:
    """One shape: buffers that keep their place, and what was recorded over them."""

    def __init__(
        self,
        run: Run,
        limits: Limits,
        tile_rows: int,
        splits: int,
        x: Tensor,
        num_times: int,
        memory: Memory = None,
    ) -> None:
        """x: [limits.num_rows, dim], where rows are put from now on. num_times: most times of a replay. memory: shared
        with others, see `shared_memory`.
        """
        self.limits = limits
        self.tile_rows = tile_rows
        self.splits = splits
        # Every user may leave its last tile part empty.
        num_tiles = -(-limits.num_rows // tile_rows) + limits.num_users - 1
        self._sizes = BatchSizes(limits.num_users, limits.num_pages, num_tiles)
        self._x = x
        self._packed = torch.from_numpy(pack([], [], [], tile_rows, self._sizes)).to(x.device)
        self._times = torch.zeros(num_times, dtype=torch.int64, device=x.device)
        batch = unpacked(self._packed, self._sizes, tile_rows, splits)
        self._again = _recorded(lambda: run(self._x, batch, self._times), x.device, memory)

    def __call__(
        self, x: Tensor, num_rows: Sequence[int], lens: Sequence[int], pages: Sequence[Sequence[int]], times: Tensor
    ) -> Tensor:
        """Rows x [sum(num_rows), dim] of users within the limits; the result is good until the next call of any graph
        of this memory.
        """
        packed = pack(num_rows, lens, pages, self.tile_rows, self._sizes)
        self._x[: len(x)] = x
        self._packed.copy_(to_device(packed, x.device))
        self._times[: len(times)] = times
        return self._again()[: len(x)]


def shared_memory(device: torch.device) -> Memory:
    """Memory for graphs of which one is replayed at a time, so that all take no more than the largest of them."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def _recorded(run: Callable[[], Tensor], device: torch.device, memory: Memory) -> Callable[[], Tensor]:
    """What runs it again and gives its result. Off CUDA nothing is recorded: it is run, over the same buffers."""
    if device.type != "cuda":
        return run
    run()  # compiles what is not compiled, which must not be recorded
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory):
        out = run()

    def again() -> Tensor:
        graph.replay()
        return out

    return again

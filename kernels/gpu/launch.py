"""How a kernel is launched: types, paddings, and the block sizes that `kernels.gpu.configs` has for the device."""

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from kernels.gpu import configs
from kernels.gpu.interpreter import interpreted
from kernels.gpu.tile import FP8, INT8, PLAIN
from kernels.paged import Batch, PagedKV
from kernels.reach import Reach

PACKED = ("ROW_OFFSETS", "PREFIX_LENS", "PAGE_OFFSETS", "PAGES", "PAGE_USERS", "TILES", "REQUEST_TIMES")
"""Arguments that may lie anywhere in one packed tensor, and
"""
VARYING = ("num_rows", "num_splits", "bias_head", "reach_back", "reach_first")
"""arguments that change with every batch: no kernel is specialised on either, as that would compile in a request."""
_LEAST_DOT = 16
"""The least extent of a product's operands."""
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
_CODES = {torch.int8: INT8, torch.float8_e4m3fn: FP8}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def triton_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of an accumulator."""
    return _TYPES[dtype]


def padded(dim: int) -> int:
    """Extent of a tile that holds a head."""
    return max(_LEAST_DOT, 1 << (dim - 1).bit_length())


def bisections(num_thresholds: int) -> int:
    """Halvings that find a place among so many thresholds."""
    return num_thresholds.bit_length()


def tile_rows_for(num_rows: int, num_bytes: int, head_dim: int) -> int:
    """Rows of a tile for so many rows of one user, or of a microbatch, in numbers of so many bytes."""
    wanted = next((rows for rows in (16, 64) if num_rows <= rows), 128)
    return min(wanted, configs.most_tile_rows(num_bytes, padded(head_dim)))


def codes_of(kv: PagedKV) -> int:
    """How K and V stand on the pages (`kernels.gpu.tile`)."""
    return _CODES.get(kv.k.dtype, PLAIN)


def of_reach(reach: Reach | None, *, targets: bool = False) -> tuple[int, int]:
    """How many keys behind its own a query sees, and how many first ones: of a target, or of a token of the prefix."""
    if reach is None:
        return 0, 0
    return reach.targets if targets else reach.tokens, reach.first


def pointers(kv: PagedKV) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K, V and their scales as a kernel takes them; float8 as its bits."""
    k, v = (x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x for x in (kv.k, kv.v))
    return k, v, k if kv.k_scales is None else kv.k_scales, v if kv.v_scales is None else kv.v_scales


@dataclass(frozen=True, slots=True)
class AttentionLaunch:
    """Of one attention kernel."""

    acc: torch.dtype
    block_m: int
    config: configs.AttentionConfig
    fast: bool
    upcast: bool

    def options(self, page_tokens: int) -> dict[str, object]:
        """Arguments of the kernel and of its launch."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": min(self.config.block_n, page_tokens),
            "ACC": triton_type(self.acc),
            "FAST": self.fast,
            "UPCAST": self.upcast,
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
        }


@dataclass(frozen=True, slots=True)
class LinearLaunch:
    """Of the projection."""

    acc: torch.dtype
    config: configs.LinearConfig
    fast: bool
    upcast: bool

    @property
    def block_m(self) -> int:
        """Rows of a block."""
        return self.config.block_m

    @property
    def block_n(self) -> int:
        """Columns of a block."""
        return self.config.block_n

    def options(self) -> dict[str, object]:
        """Arguments of the kernel and of its launch."""
        return {
            "BLOCK_M": self.config.block_m,
            "BLOCK_N": self.config.block_n,
            "BLOCK_K": self.config.block_k,
            "ACC": triton_type(self.acc),
            "FAST": self.fast,
            "UPCAST": self.upcast,
            "num_warps": self.config.num_warps,
            "num_stages": self.config.num_stages,
        }


def attention_launch(op: str, q: Tensor, kv: PagedKV, batch: Batch) -> AttentionLaunch:
    """For queries [num_rows, num_heads, qk_dim] of a batch over pages."""
    head_dim = max(padded(q.shape[2]), padded(kv.v.shape[3]))
    op += "_codes" if codes_of(kv) else ""
    config = configs.attention(op, _device(q), q.dtype.itemsize, head_dim, batch.tile_rows)
    return AttentionLaunch(accumulator(q.dtype), batch.tile_rows, config, *_how(q.dtype))


def linear_launch(x: Tensor, num_out: int) -> LinearLaunch | None:
    """For rows [num_rows, num_in]; None where the library is to compute it."""
    config = configs.linear(_device(x), x.dtype.itemsize, len(x), num_out)
    if isinstance(config, configs.Library):
        return None
    return LinearLaunch(accumulator(x.dtype), config, *_how(x.dtype))


def _how(dtype: torch.dtype) -> tuple[bool, bool]:
    """Fast SiLU; products in the accumulator's type."""
    short = dtype.itemsize == 2
    return short and not interpreted(), short and interpreted()


def _device(x: Tensor) -> configs.Device:
    return configs.INTERPRETER if interpreted() else configs.device(x.device)

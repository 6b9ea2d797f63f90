"""What a backend that computes a whole stack of layers at once is given: its sizes and its weights."""

from dataclasses import dataclass

from torch import Tensor

from kernels.bias import RelativeBias
from kernels.reach import Reach


@dataclass(frozen=True, slots=True)
class StackConfig:
    """What every layer of a stack shares. activate_all: SiLU on v, q and k, not on u alone.

    concat: output([u, av, u * LN(av)]) instead of output(u * LN(av)). softmax: of attention, instead of SiLU of each
    logit. rotary_base: of rotary positions (`kernels.rotary`), None without.
    """

    num_heads: int
    dim: int
    qk_dim: int
    v_dim: int
    attention_norm: float
    logit_scale: float
    norm_eps: float
    activate_all: bool
    concat: bool
    softmax: bool = False
    rotary_base: float | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer. Absent ones are None; a norm is (weight, bias).

    uvqk: [2 * num_heads * (v_dim + qk_dim), dim], rows u, v, q, k, heads outer.
    output: [dim, num_heads * v_dim], or three times as many columns with concat.
    """

    uvqk: Tensor
    output: Tensor
    uvqk_bias: Tensor | None = None
    output_bias: Tensor | None = None
    norm_in: tuple[Tensor, Tensor] | None = None
    norm_out: tuple[Tensor, Tensor] | None = None
    bias: RelativeBias | None = None
    reach: Reach | None = None

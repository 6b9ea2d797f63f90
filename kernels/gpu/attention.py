"""Attention on pages as a stack takes it: the kernels for Hopper where they are usable, else the plain ones.

The plain kernels say what is computed; `kernels.gpu.hopper` computes the same, but on pages that have V transposed with
products of float8 (`kernels.fp8_reference`), which are asked for by that.
"""

from dataclasses import replace
from functools import partial

from torch import Tensor

from kernels.bias import RelativeBias
from kernels.gpu import prefix_attention, softmax_attention, target_attention
from kernels.gpu.hopper import fp8_target_attention
from kernels.gpu.hopper import prefix_attention as hopper_prefix_attention
from kernels.gpu.hopper import target_attention as hopper_target_attention
from kernels.gpu.hopper.choice import usable
from kernels.gpu.hopper.launch import takes, takes_fp8
from kernels.gpu.hopper.self_check import Kind
from kernels.paged import Batch, PagedKV
from kernels.reach import Reach


def target_attention_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv: PagedKV,
    batch: Batch,
    prefix_bias: Tensor | None,
    own_bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
    softmax: bool = False,
    plain: bool = False,
) -> Tensor:
    """See `kernels.gpu.target_attention`. softmax: see `kernels.gpu.softmax_attention`, which has no reach. plain: use
    no kernel for Hopper, where none has a reach or a softmax.
    """
    parts = partial(target_attention.target_attention_parts, reach=reach)
    if softmax:
        assert reach is None
        parts = partial(softmax_attention.target_attention_parts)
    elif not plain and reach is None and not q.is_cpu:
        kind = Kind("target_attention", q.dtype, q.shape[2], v.shape[2], prefix_bias is not None)
        if takes((q, k, v), kv, batch, prefix_bias) and usable(q.device, kind):
            parts = partial(hopper_target_attention.target_attention_parts)
        elif takes_fp8((q, k, v), kv, batch, prefix_bias) and usable(q.device, replace(kind, fp8=True)):
            parts = partial(fp8_target_attention.target_attention_parts)
    return parts(q, k, v, kv, batch, prefix_bias, own_bias, logit_scale=logit_scale, norm=norm)


def prefix_attention_parts(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    bias: RelativeBias | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
    softmax: bool = False,
    plain: bool = False,
) -> Tensor:
    """See `kernels.gpu.prefix_attention`. softmax, plain: as above."""
    parts = partial(prefix_attention.prefix_attention_parts, reach=reach)
    if softmax:
        assert reach is None
        parts = partial(softmax_attention.prefix_attention_parts)
    elif not plain and reach is None and not q.is_cpu and takes((q,), kv, batch):
        kind = Kind("prefix_attention", q.dtype, q.shape[2], kv.v.shape[3], bias is not None)
        if usable(q.device, kind):
            parts = partial(hopper_prefix_attention.prefix_attention_parts)
    return parts(q, kv, batch, bias, logit_scale=logit_scale, norm=norm)

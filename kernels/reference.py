"""The readable definition of every dense op: what training and the reference backend compute with, and the oracle of
every faster backend.

Attention has two forms. Pointwise, HSTU's own: weights = silu(q.k * logit_scale + bias) / norm, so a token's output is
a plain sum over keys and a prefix may be split and its partial sums added. Softmax: weights =
softmax(q.k * logit_scale + bias) / norm over all that a token sees; of a target that is its prefix and itself.
"""

import torch
from torch import Tensor
from torch.nn import functional

from kernels.bias import RelativeBias
from kernels.reach import Reach, seen

_QUERY_BLOCK = 128
"""Rows of a prefill computed at once, so that their score matrix stays in the cache: all at once takes 3x as long."""


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
    softmax: bool = False,
) -> Tensor:
    """Dense attention under any mask; differentiable. The textbook form that the other ops are held against.

    q: [..., num_queries, num_heads, qk_dim]. k: [..., num_keys, num_heads, qk_dim].
    v: [..., num_keys, num_heads, v_dim]. mask: bool, broadcasts to [..., num_queries, num_keys].
    bias: broadcasts to [..., num_heads, num_queries, num_keys]. Returns [..., num_queries, num_heads, v_dim]; with
    softmax that of a query without keys is any finite number.
    """
    logits = _masked_logits(q, k, bias, logit_scale)
    weights = _softmax(logits, mask) if softmax else functional.silu(logits) * mask.unsqueeze(-3)
    return torch.matmul(weights, v.transpose(-3, -2)).transpose(-3, -2) / norm


def masked_target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    own_bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
    softmax: bool = False,
) -> Tensor:
    """Each target attends to what the mask shows it of a prefix, and to itself; differentiable.

    q, k: [..., num_targets, num_heads, qk_dim]. v: [..., num_targets, num_heads, v_dim]. prefix_k: [..., n, num_heads,
    qk_dim]. prefix_v: [..., n, num_heads, v_dim]. mask: bool, broadcasts to [..., num_targets, n]. bias: broadcasts to
    [..., num_heads, num_targets, n]. own_bias: [num_heads]. Returns [..., num_targets, num_heads, v_dim].
    """
    own = (q * k).sum(-1, keepdim=True) * logit_scale  # [..., m, H, 1]
    if own_bias is not None:
        own = own + own_bias.unsqueeze(-1)
    if softmax:
        logits = torch.cat([_masked_logits(q, prefix_k, bias, logit_scale), own.transpose(-3, -2)], dim=-1)
        weights = _softmax(logits, functional.pad(mask, (0, 1), value=True))
        seen = torch.matmul(weights[..., :-1], prefix_v.transpose(-3, -2)).transpose(-3, -2)
        return (seen + weights[..., -1:].transpose(-3, -2) * v) / norm
    seen = masked_attention(q, prefix_k, prefix_v, mask, bias, logit_scale=logit_scale, norm=norm)
    return seen + functional.silu(own) * v / norm


def _masked_logits(q: Tensor, k: Tensor, bias: Tensor | None, logit_scale: float) -> Tensor:
    logits = torch.matmul(q.transpose(-3, -2) * logit_scale, k.transpose(-3, -2).transpose(-2, -1))
    return logits if bias is None else logits + bias


def _softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Over the keys that the mask shows. A row of padding may see none: it has to stay finite."""
    return logits.masked_fill(~mask.unsqueeze(-3), torch.finfo(logits.dtype).min).softmax(-1)


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    times: Tensor,
    bias: RelativeBias | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
    softmax: bool = False,
) -> Tensor:
    """Causal attention of the last tokens of a prefix over the whole of it, or of what they see of it (`reach`):
    prefill (all tokens) and append (some).

    q: [num_queries, num_heads, qk_dim], the last num_queries of the prefix. k: [num_heads, n, qk_dim].
    v: [num_heads, n, v_dim]. times: int64 [n]. Returns [num_queries, num_heads, v_dim].
    """
    num_queries, num_heads, qk_dim = q.shape
    n, v_dim = k.shape[1], v.shape[2]
    _check(k.shape == (num_heads, n, qk_dim), "k", k)
    _check(v.shape == (num_heads, n, v_dim), "v", v)
    _check(times.shape == (n,), "times", times)
    _check(num_queries <= n, "q", q)
    first = n - num_queries
    positions = torch.arange(n, device=q.device)
    out = q.new_empty(num_queries, num_heads, v_dim)
    for start in range(first, n, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, n)
        rows = slice(start - first, stop - first)
        split = (0, 0) if reach is None else reach.of_tokens(start)
        own, keys = positions[start:stop], seen(positions, split, stop, 0)
        logits = torch.bmm(q[rows].transpose(0, 1) * logit_scale, seen(k, split, stop, 1).transpose(1, 2))
        if bias is not None:
            logits += bias.matrix(own, keys, times[start:stop], seen(times, split, stop, 0))
        unseen = keys > own.unsqueeze(-1)
        if reach is not None:
            unseen |= ~reach.mask(own, keys)
        if softmax:
            weights = logits.masked_fill_(unseen, float("-inf")).softmax(-1)  # [H, block, keys]
        else:
            weights = functional.silu(logits, inplace=True).masked_fill_(unseen, 0.0)
        out[rows] = torch.bmm(weights, seen(v, split, stop, 1)).div_(norm).transpose(0, 1)
    return out


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor,
    prefix_v: Tensor,
    prefix_bias: Tensor | None,
    own_bias: Tensor | None,
    *,
    logit_scale: float,
    norm: float,
    softmax: bool = False,
) -> Tensor:
    """Each target attends to the whole prefix and to itself, never to another target (HSTU paper, section 3.4).

    q, k: [num_targets, num_heads, qk_dim]. v: [num_targets, num_heads, v_dim]: the targets' own.
    prefix_k: [num_heads, n, qk_dim]. prefix_v: [num_heads, n, v_dim]. prefix_bias: [num_heads, n], one vector for all
    targets. own_bias: [num_heads]. Returns [num_targets, num_heads, v_dim].
    """
    num_targets, num_heads, qk_dim = q.shape
    n, v_dim = prefix_k.shape[1], v.shape[2]
    _check(k.shape == q.shape, "k", k)
    _check(v.shape == (num_targets, num_heads, v_dim), "v", v)
    _check(prefix_k.shape == (num_heads, n, qk_dim), "prefix_k", prefix_k)
    _check(prefix_v.shape == (num_heads, n, v_dim), "prefix_v", prefix_v)
    _check(prefix_bias is None or prefix_bias.shape == (num_heads, n), "prefix_bias", prefix_bias)
    _check(own_bias is None or own_bias.shape == (num_heads,), "own_bias", own_bias)
    own = (q * k).sum(-1, keepdim=True) * logit_scale  # [m, H, 1]
    if own_bias is not None:
        own = own + own_bias.unsqueeze(-1)
    keys = prefix_k.transpose(1, 2)
    if prefix_bias is None:
        logits = torch.bmm(q.transpose(0, 1) * logit_scale, keys)  # [H, m, n]
    else:
        logits = torch.baddbmm(prefix_bias.unsqueeze(1), q.transpose(0, 1), keys, alpha=logit_scale)
    if softmax:
        weights = torch.cat([logits, own.transpose(0, 1)], dim=-1).softmax(-1)
        logits, of_own = weights[..., :-1], weights[..., -1:].transpose(0, 1)
    else:
        logits, of_own = functional.silu(logits, inplace=True), functional.silu(own)
    prefix = torch.bmm(logits, prefix_v).transpose(0, 1)  # [m, H, v_dim]
    return torch.addcmul(prefix, of_own, v).div_(norm)


def _check(holds: bool, name: str, tensor: Tensor | None) -> None:
    assert holds, f"{name}: shape {None if tensor is None else tuple(tensor.shape)} does not fit the other arguments"

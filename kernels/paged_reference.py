"""The readable definition of every op on pages: each user on its own, through `kernels.reference`."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import reference
from kernels.bias import RelativeBias
from kernels.paged import Batch, PagedKV
from kernels.quantise import dequantised, quantised
from kernels.reach import Reach, seen
from kernels.rotary import rotated


@dataclass(frozen=True, slots=True)
class _User:
    """One user's part of a batch: its rows, its tokens on pages, the pages."""

    index: int
    rows: slice
    prefix_len: int
    pages: Tensor
    first_page: int


def users(batch: Batch) -> Iterator[_User]:
    """Those of a batch that have rows."""
    rows, lens, pages = batch.row_offsets.tolist(), batch.prefix_lens.tolist(), batch.page_offsets.tolist()
    for index, prefix_len in enumerate(lens):
        if rows[index] < rows[index + 1]:
            own = batch.pages[pages[index] : pages[index + 1]].long()
            yield _User(index, slice(rows[index], rows[index + 1]), prefix_len, own, pages[index])


def gather(kv: PagedKV, pages: Tensor, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K [num_heads, num_tokens, qk_dim] and V of a prefix, as numbers of a dtype."""
    k, v = (
        dequantised(codes[pages], None if scales is None else scales[pages], dtype).transpose(0, 1).flatten(1, 2)
        for codes, scales in ((kv.k, kv.k_scales), (kv.v, kv.v_scales))
    )
    return k[:, :num_tokens], v[:, :num_tokens]


def prefix_attention(
    q: Tensor,
    kv: PagedKV,
    batch: Batch,
    bias: RelativeBias | None,
    *,
    logit_scale: float,
    norm: float,
    reach: Reach | None = None,
    softmax: bool = False,
) -> Tensor:
    """Causal attention of each user's newest tokens over its whole prefix, which stands on the pages already, or over
    what they see of it.

    q: [num_rows, num_heads, qk_dim]. Returns [num_rows, num_heads, v_dim].
    """
    out = q.new_empty(*q.shape[:2], kv.v.shape[3])
    for user in users(batch):
        k, v = gather(kv, user.pages, user.prefix_len, q.dtype)
        times = kv.times[user.pages].flatten()[: user.prefix_len]
        out[user.rows] = reference.prefix_attention(
            q[user.rows],
            k,
            v,
            times,
            bias,
            logit_scale=logit_scale,
            norm=norm,
            reach=reach,
            softmax=softmax,
        )
    return out


def target_attention(
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
) -> Tensor:
    """Each target attends to the whole prefix of its user, or to what it sees of it, and to itself (HSTU paper, section
    3.4).

    q, k: [num_rows, num_heads, qk_dim]. v: [num_rows, num_heads, v_dim]: the targets' own. prefix_bias: see
    `target_bias`. own_bias: [num_heads]. Returns [num_rows, num_heads, v_dim].
    """
    out = q.new_empty(*q.shape[:2], v.shape[2])
    for user in users(batch):
        n, first, rows = user.prefix_len, user.first_page * kv.page_tokens, user.rows
        split = (0, 0) if reach is None else reach.of_targets(n)
        keys, values = (seen(kept, split, n, 1) for kept in gather(kv, user.pages, n, q.dtype))
        bias = None
        if prefix_bias is not None:
            bias = seen(prefix_bias[:, first : first + n].to(q.dtype), split, n, 1)
        out[rows] = reference.target_attention(
            q[rows],
            k[rows],
            v[rows],
            keys,
            values,
            bias,
            own_bias,
            logit_scale=logit_scale,
            norm=norm,
            softmax=softmax,
        )
    return out


def target_bias(kv: PagedKV, batch: Batch, times_ms: Tensor, bias: RelativeBias) -> Tensor:
    """Bias of each user's targets on its prefix: the targets of one user share position and time.

    times_ms: int64 [num_users], of the requests. Returns [num_heads, num_pages * page_tokens] for the pages of the
    batch, float32 or above; what lies beyond a user's prefix is anything.
    """
    size, wide = len(batch.pages) * kv.page_tokens, torch.promote_types(bias.position.dtype, torch.float32)
    bias = RelativeBias(bias.position.to(wide), bias.time.to(wide), bias.thresholds)
    out = bias.position.new_full((bias.position.shape[0], size), float("nan"))
    lens, offsets = batch.prefix_lens.tolist(), batch.page_offsets.tolist()
    for index, n in enumerate(lens):
        own = batch.pages[offsets[index] : offsets[index + 1]].long()
        times, first = kv.times[own].flatten()[:n], offsets[index] * kv.page_tokens
        positions = torch.arange(n, device=times.device)
        out[:, first : first + n] = bias.vector(n, positions, int(times_ms[index]), times)
    return out


def rotate(x: Tensor, batch: Batch, base: float, *, of_targets: bool) -> None:
    """Turn queries or keys [num_rows, num_heads, qk_dim] of each user's newest tokens, or of its targets, which stand
    behind all of them, by their positions; in place (`kernels.rotary`).
    """
    for user in users(batch):
        own, n = x[user.rows], user.prefix_len
        positions = torch.full((len(own),), n) if of_targets else torch.arange(n - len(own), n)
        x[user.rows] = rotated(own, positions.to(x.device), base)


def kv_write(k: Tensor, v: Tensor, kv: PagedKV, batch: Batch, times: Tensor | None = None) -> None:
    """Store the newest tokens of each user on its pages: k [num_rows, num_heads, qk_dim], v [num_rows, num_heads,
    v_dim], and if they are given their times, int64 [num_rows].
    """
    size = kv.page_tokens
    for user in users(batch):
        num_rows = user.rows.stop - user.rows.start
        tokens = torch.arange(user.prefix_len - num_rows, user.prefix_len, device=k.device)
        pages, slots = user.pages[tokens // size], tokens % size
        if times is not None:
            kv.times[pages, slots] = times[user.rows]
        for x, codes, scales in ((k[user.rows], kv.k, kv.k_scales), (v[user.rows], kv.v, kv.v_scales)):
            if scales is None:
                codes[pages, :, slots] = x
            else:
                codes[pages, :, slots], scales[pages, :, slots] = quantised(x, codes.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm of every row: [num_rows, dim] -> [num_rows, dim]."""
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, num_silu: int = 0
) -> Tensor:
    """x @ weight.T + bias, SiLU on the first num_silu columns, + residual.

    x: [num_rows, num_in]. weight: [num_out, num_in]. residual: [num_rows, num_out]. Returns [num_rows, num_out].
    """
    out = functional.linear(x, weight, bias)
    out[:, :num_silu] = functional.silu(out[:, :num_silu])
    return out if residual is None else out + residual


def norm_gate(
    attended: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, concat: bool
) -> Tensor:
    """u * LayerNorm(attended), or with concat [u, attended, u * LayerNorm(attended)].

    attended, u: [num_rows, width]. Returns [num_rows, width], or three times as wide.
    """
    attended = attended.to(u.dtype)
    gated = u * functional.layer_norm(attended, attended.shape[-1:], weight, bias, eps)
    return torch.cat([u, attended, gated], -1) if concat else gated

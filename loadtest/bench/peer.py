"""The peer: one dense forward over [history, candidates], in plain torch as public implementations of HSTU write it.

Every pair of tokens has a score, [batch, heads, n, n] at once: an einsum, plus the relative bias as a matrix, SiLU,
divided by the norm, times a mask of ones and zeros, and an einsum with the values. No cache, no microbatches.
"""

import torch
from torch import Tensor
from torch.nn import functional

from loadtest.bench.shapes import Shape
from mfalcon.attention import AttentionForm
from mfalcon.models.base import EventTokens, Ranker, Targets, prefix_ranker


class DenseAttention:
    """A phase of attention (mfalcon.attention.Attend) over a batch of whole sequences.

    mask: float [n, n], 1 where a token is seen. times: int64 [n]; positions: int64 [n].
    """

    def __init__(self, mask: Tensor, positions: Tensor, times: Tensor) -> None:
        self._mask = mask
        self._positions = positions
        self._times = times

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm) -> Tensor:
        """q, k: [batch, n, heads, qk_dim], v: [batch, n, heads, v_dim] -> [batch, n, heads, v_dim]."""
        scores = torch.einsum("bnhd,bmhd->bhnm", q * form.logit_scale, k)
        if form.bias is not None:
            scores = scores + form.bias.matrix(self._positions, self._positions, self._times, self._times)
        weights = functional.silu(scores) / form.norm * self._mask
        return torch.einsum("bhnm,bmhd->bnhd", weights, v)


def dense_forward(ranker: Ranker, events: EventTokens, targets: Targets, time_ms: int) -> Tensor:
    """Scores of all targets [num_targets, num_tasks]; they equal mfalcon.laws.masked_forward."""
    model = prefix_ranker(ranker)
    prefix, candidates = model.prefix_tokens(events), model.target_tokens(targets)
    n, size = len(prefix), len(prefix) + len(candidates)
    index = torch.arange(size)
    seen = (index[:, None] >= index) & ((index < n) | (index[:, None] == index))
    times = torch.cat([model.token_times(events), torch.full((size - n,), time_ms)])
    attend = DenseAttention(seen.to(prefix.dtype), index.clamp(max=n), times)
    hidden = model.stack(torch.cat([prefix, candidates]).unsqueeze(0), attend)[0]
    return model.scores(model.predict(hidden[n:], targets))


def refusal(shape: Shape, n: int, m: int, limit_gib: float) -> str | None:
    """Why the peer is not tried at a size, None if it is."""
    # By head: scores, two gathered biases and their sum, weights, of 4 bytes; once: distance and bucket of 8 bytes.
    bytes_per_pair = shape.num_heads * 5 * 4 + 3 * 8
    gib = (n + m) ** 2 * bytes_per_pair / 2**30
    return f"its mask and scores would need {gib:.1f} GiB, the limit is {limit_gib:g}" if gib > limit_gib else None

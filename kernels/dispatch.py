"""The one public function of each op: checks its arguments, then calls the backend of the tensors' device.

Today every device runs the reference op by op; whole stacks have faster backends (`mfalcon.backends.choice`).
"""

from torch import Tensor

from kernels import reference
from kernels.bias import RelativeBias


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, times: Tensor, bias: RelativeBias | None, *, logit_scale: float, norm: float
) -> Tensor:
    """Causal attention of the last tokens of a prefix over all of it; shapes in `kernels.reference`."""
    num_queries, num_heads, qk_dim = q.shape
    n = k.shape[1]
    _check(k.shape == (num_heads, n, qk_dim), "k", k)
    _check(v.shape[:2] == (num_heads, n), "v", v)
    _check(times.shape == (n,), "times", times)
    _check(num_queries <= n, "q", q)
    return reference.prefix_attention(q, k, v, times, bias, logit_scale=logit_scale, norm=norm)


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
) -> Tensor:
    """Attention of every target over the shared prefix and itself; shapes in `kernels.reference`."""
    num_targets, num_heads, qk_dim = q.shape
    n = prefix_k.shape[1]
    _check(k.shape == q.shape, "k", k)
    _check(v.shape[:2] == (num_targets, num_heads), "v", v)
    _check(prefix_k.shape == (num_heads, n, qk_dim), "prefix_k", prefix_k)
    _check(prefix_v.shape == (num_heads, n, v.shape[2]), "prefix_v", prefix_v)
    _check(prefix_bias is None or prefix_bias.shape == (num_heads, n), "prefix_bias", prefix_bias)
    _check(own_bias is None or own_bias.shape == (num_heads,), "own_bias", own_bias)
    return reference.target_attention(
        q, k, v, prefix_k, prefix_v, prefix_bias, own_bias, logit_scale=logit_scale, norm=norm
    )


def _check(holds: bool, name: str, tensor: Tensor | None) -> None:
    assert holds, f"{name}: shape {None if tensor is None else tuple(tensor.shape)} does not fit the other arguments"

"""What our attention kernels stand beside, on the same numbers and device: torch eager, torch.compile, and one dense
masked attention over the whole sequence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels import paged_reference, reference
from kernels.paged_reference import gather
from loadtest.bench.gpu_cases import TARGET, Inputs

EAGER, COMPILED, MASKED = "torch eager", "torch.compile", "dense masked"
_LIVE = 3
"""Score matrices of a dense formulation that are alive at once."""

Compute = Callable[[int], Tensor]
"""Output of our rows, [num_rows, num_heads, head_dim], on a set of pages."""


@dataclass(frozen=True, slots=True)
class Competitor:
    """One that runs here (compute), or why it does not (skipped)."""

    name: str
    compute: Compute | None
    skipped: str | None = None


def competitors(given: Inputs, limit_gib: float, *, with_compile: bool) -> Iterator[Competitor]:
    """All three; each is made when it is asked for, so that only one has its tensors at a time."""
    case, device = given.case, given.q.device
    pairs_once = case.num_heads * case.m * case.n
    size = case.n + case.m if case.op == TARGET else case.n
    for name, pairs, make in (
        (EAGER, pairs_once if case.op == TARGET else 128 * case.num_heads * case.n, _eager),
        (COMPILED, case.batch * pairs_once, _compiled),
        (MASKED, case.batch * case.num_heads * size**2, _masked),
    ):
        gib = pairs * _LIVE * case.torch_dtype.itemsize / 2**30
        if gib > limit_gib:
            yield Competitor(name, None, f"its scores would need {gib:.1f} GiB, the limit is {limit_gib:g}")
        elif name == COMPILED and not with_compile:
            yield Competitor(name, None, "left out: compiling takes seconds")
        elif name == COMPILED and device.type != "cuda":
            yield Competitor(name, None, "compiled for a CUDA device only: there is none")
        else:
            try:
                yield Competitor(name, make(given))
            except Exception as error:  # noqa: BLE001 (another project's compiler: why it failed is what we report)
                yield Competitor(name, None, f"{type(error).__name__}: {error}"[:300])


def _eager(given: Inputs) -> Compute:
    """The reference ops, user by user, pages gathered each time."""

    def compute(of_set: int) -> Tensor:
        kv, scale, norm = given.sets[of_set], given.scale, given.norm
        if given.case.op == TARGET:
            return paged_reference.target_attention(
                given.q, given.k, given.v, kv, given.batch, None, None, logit_scale=scale, norm=norm
            )
        return paged_reference.prefix_attention(given.q, kv, given.batch, None, logit_scale=scale, norm=norm)

    return compute


def _dense(q: Tensor, k: Tensor, v: Tensor, own: tuple[Tensor, Tensor] | None, scale: Tensor, norm: Tensor) -> Tensor:
    """q: [batch, heads, m, d]; k, v: [batch, heads, n, d], contiguous; own: k and v of targets, else causal.

    scale, norm: of no dimension; as numbers they would be compiled in, each anew.
    """
    logits = torch.matmul(q, k.transpose(-2, -1)) * scale
    weights = functional.silu(logits)
    if own is None:
        m, n = logits.shape[-2:]
        position = torch.arange(n - m, n, device=q.device)
        weights = weights * (torch.arange(n, device=q.device) <= position[:, None])
        return torch.matmul(weights, v) / norm
    own_k, own_v = own
    alone = functional.silu((q * own_k).sum(-1, keepdim=True) * scale)
    return (torch.matmul(weights, v) + alone * own_v) / norm


def _compiled(given: Inputs) -> Compute:
    """Dense SiLU attention on keys and values that were gathered beforehand, outside the clock."""
    q, k, v = (_by_user(x, given) for x in (given.q, given.k, given.v))
    gathered = [_gathered(given, of_set) for of_set in range(min(len(given.sets), 4))]
    own = (k, v) if given.case.op == TARGET else None
    scale, norm = (torch.tensor(x, dtype=q.dtype, device=q.device) for x in (given.scale, given.norm))
    compiled = torch.compile(_dense, dynamic=True)

    def compute(of_set: int) -> Tensor:
        keys, values = gathered[of_set % len(gathered)]
        out: Tensor = compiled(q, keys, values, own, scale, norm)
        return out.transpose(1, 2).flatten(0, 1)

    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        compute(0)
    return compute


def _masked(given: Inputs) -> Compute:
    """All tokens of a user in one attention under a mask of ones and zeros, as public implementations have it."""
    case, first = given.case, given.case.n if given.case.op == TARGET else given.case.n - given.case.m
    keys, values = _gathered(given, 0)
    q, own_k, own_v = (_by_user(x, given) for x in (given.q, given.k, given.v))
    before = torch.randn_like(keys[:, :, :first])
    queries = torch.cat([before, q], 2).transpose(1, 2)
    if case.op == TARGET:
        keys, values = torch.cat([keys, own_k], 2), torch.cat([values, own_v], 2)
    keys, values, size = keys.transpose(1, 2), values.transpose(1, 2), queries.shape[1]
    index = torch.arange(size, device=q.device)
    mask = index[:, None] >= index
    if case.op == TARGET:
        mask &= (index < case.n) | (index[:, None] == index)

    def compute(_: int) -> Tensor:
        out = reference.masked_attention(queries, keys, values, mask, None, logit_scale=given.scale, norm=given.norm)
        return out[:, first:].flatten(0, 1)

    return compute


def _by_user(x: Tensor, given: Inputs) -> Tensor:
    """Rows [batch * m, heads, d] as [batch, heads, m, d]."""
    return x.reshape(given.case.batch, given.case.m, *x.shape[1:]).transpose(1, 2).contiguous()


def _gathered(given: Inputs, of_set: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all users, [batch, heads, n, d], contiguous."""
    case, kv = given.case, given.sets[of_set]
    pairs = [gather(kv, user.pages, case.n, given.q.dtype) for user in paged_reference.users(given.batch)]
    return torch.stack([k for k, _ in pairs]), torch.stack([v for _, v in pairs])

"""A small random end of a model with its definition in float64, which the compiled one is held against."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from kernels.cpu.library import Kernel
from kernels.cpu.readout import Affine, FusedReadout, ReadoutWeights

_NUM_ROWS, _CODES = 11, (3, 4)
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class ReadoutSize:
    """dense: features, 0 for a model that reads none. own_context: each target has codes of its own."""

    num_targets: int
    dim: int
    hidden: int
    num_tasks: int
    dense: int
    own_context: bool


ODD = ReadoutSize(101, 77, 35, 3, 9, own_context=False)


def readout_deviation(kernel: Kernel, size: ReadoutSize) -> float:
    """Worst difference of a score from float64's: of a probability, or relative to 1 of a value."""
    generator = torch.Generator().manual_seed(size.dim)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def affine(columns: int, depth: int) -> Affine:
        return random(columns, depth) / depth**0.5, random(columns)

    weights = ReadoutWeights(
        norm=(random(size.dim), random(size.dim)),
        norm_eps=_EPS,
        first=affine(size.hidden, size.dim),
        last=affine(size.num_tasks, size.hidden),
        dense=(affine(5, size.dense), affine(size.dim, 5)) if size.dense else None,
        item_bias=random(_NUM_ROWS, size.num_tasks),
        context=random(sum(_CODES), size.dim),
        first_codes=(0, _CODES[0]),
        is_binary=[task % 2 == 0 for task in range(size.num_tasks)],
        centers=[0.5 * (task % 2) for task in range(size.num_tasks)],
    )
    hidden, features = random(size.num_targets, size.dim), random(size.num_targets, size.dense) if size.dense else None
    rows = torch.randint(0, _NUM_ROWS, (size.num_targets,), generator=generator)
    lead = (size.num_targets,) if size.own_context else ()
    codes = torch.randint(0, min(_CODES), (*lead, len(_CODES)), generator=generator)
    found = FusedReadout(kernel, weights)(hidden, rows, codes, features)
    expected = _defined(weights, hidden, rows, codes, features)
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=1)).max())


def _defined(weights: ReadoutWeights, hidden: Tensor, rows: Tensor, codes: Tensor, features: Tensor | None) -> Tensor:
    def linear(x: Tensor, affine: Affine) -> Tensor:
        return functional.linear(x, affine[0].double(), affine[1].double())

    assert weights.context is not None
    context = weights.context.double()[codes + torch.tensor(weights.first_codes)].sum(-2)
    x = hidden.double() + context
    if weights.dense is not None and features is not None:
        x = x + linear(functional.silu(linear(features.double(), weights.dense[0])), weights.dense[1])
    weight, bias = (tensor.double() for tensor in weights.norm)
    x = functional.layer_norm(x, x.shape[-1:], weight, bias, weights.norm_eps)
    raw = linear(functional.silu(linear(x, weights.first)), weights.last) + weights.item_bias.double()[rows]
    return torch.where(torch.tensor(weights.is_binary), raw.sigmoid(), raw + torch.tensor(weights.centers))

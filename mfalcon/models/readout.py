"""What is read off hidden targets while a model serves: context, dense features, heads and scores, as one call of
compiled code where there is a kernel of float32, else in as few operators as that takes.

At 100 candidates the calls of the operators cost more than what they compute. The definition is `TaskRanker.predict`
and `TaskHeads.scores`, one module and one task after the other.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from kernels.cpu.library import Kernel
from kernels.cpu.readout import FusedReadout, ReadoutWeights
from mfalcon.models.base import PrefixRanker, Targets, TaskRanker


class TargetReadout(Protocol):
    """What is read off hidden targets."""

    def scores(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden targets [num_targets, dim] -> outputs [num_targets, num_outputs]."""
        ...


def readout_of(model: PrefixRanker, kernel: Kernel | None = None) -> TargetReadout:
    """Of a model whose weights no longer change. kernel: see `Readout`."""
    return Readout(model, kernel) if isinstance(model, TaskRanker) else Prediction(model)


class Prediction:
    """The end of a model as it is written."""

    def __init__(self, model: PrefixRanker) -> None:
        self._model = model

    def scores(self, hidden: Tensor, targets: Targets) -> Tensor:
        """See `TargetReadout`."""
        return self._model.scores(self._model.predict(hidden, targets))


class Readout:
    """The end of a model whose weights no longer change."""

    def __init__(self, model: TaskRanker, kernel: Kernel | None = None) -> None:
        """kernel: of float32, for a model on the CPU; torch's operators compute where it is None."""
        tasks, bias, weight = model.config.tasks, model.heads.item_bias, model.heads.last.weight.detach()
        tables = [table.weight.detach() for table in model.context.embeddings]
        sizes = [len(table) for table in tables]
        self._context = torch.cat(tables) if tables else None
        self._first_rows = torch.tensor([1 + sum(sizes[:index]) for index in range(len(sizes))], device=weight.device)
        self._dense = model.dense
        self._norm, self._first, *_, self._last = model.heads.mlp
        self._has_bias = bias is not None
        self._item_bias = weight.new_zeros(1, len(tasks)) if bias is None else bias.weight.detach()
        self._is_binary = torch.tensor([task.kind == "binary" for task in tasks], device=weight.device)
        self._centers = torch.tensor([task.center for task in tasks], dtype=weight.dtype, device=weight.device)
        self._all_binary = all(task.kind == "binary" for task in tasks)
        compiled = kernel is not None and kernel.dtype == weight.dtype == torch.float32 and weight.device.type == "cpu"
        self._fused = FusedReadout(kernel, self._weights()) if kernel is not None and compiled else None

    def scores(self, hidden: Tensor, targets: Targets) -> Tensor:
        """Hidden targets [num_targets, dim] -> scores [num_targets, num_tasks]: probabilities (binary), values
        (regression). targets.context: codes of all targets, [num_features], or of each, [num_targets, num_features];
        targets.dense: of each, if the model reads any.
        """
        rows = targets.rows if self._has_bias else torch.zeros_like(targets.rows)
        if self._fused is not None:
            dense = None if targets.dense is None else targets.dense.float()
            return self._fused(hidden.float(), rows, targets.context, dense)
        if self._context is not None:
            codes = (targets.context + self._first_rows).view(-1, len(self._first_rows))
            hidden = hidden + functional.embedding_bag(codes, self._context, mode="sum")
        x = hidden.to(self._item_bias.dtype)
        if self._dense.num_features:
            x = x + self._dense(targets.dense)
        x = self._norm(x)
        x = functional.silu(self._first(x), inplace=True)
        raw: Tensor = self._last(x).add_(functional.embedding(rows, self._item_bias))
        if self._all_binary:
            return raw.sigmoid_()
        return torch.where(self._is_binary, raw.sigmoid(), raw + self._centers)

    def _weights(self) -> ReadoutWeights:
        assert isinstance(self._norm, nn.LayerNorm)
        dense = (_affine(self._dense.first), _affine(self._dense.last)) if self._dense.num_features else None
        return ReadoutWeights(
            norm=_affine(self._norm),
            norm_eps=self._norm.eps,
            first=_affine(self._first),
            last=_affine(self._last),
            dense=dense,
            item_bias=self._item_bias,
            context=self._context,
            first_codes=self._first_rows.tolist(),
            is_binary=self._is_binary.tolist(),
            centers=self._centers.tolist(),
        )


def _affine(module: nn.Module) -> tuple[Tensor, Tensor]:
    return module.get_parameter("weight"), module.get_parameter("bias")

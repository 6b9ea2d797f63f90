"""Multi-task heads: a target's hidden vector -> one value per task, and the blend that ranks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mfalcon.models.config import Task
from mfalcon.types import TaskInfo


class TaskHeads(nn.Module):
    """A small MLP for all tasks, plus a bias per item and task where items are counted (num_rows): those of an open
    vocabulary are not. Never below float32: a bfloat16 score has 8 bits.
    """

    def __init__(self, tasks: Sequence[Task], dim: int, hidden: int, num_rows: int | None, dropout: float) -> None:
        super().__init__()
        self._tasks = tuple(tasks)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, len(tasks))
        )
        self.item_bias: nn.Embedding | None = None
        if num_rows is not None:
            self.item_bias = nn.Embedding(num_rows, len(tasks))
            nn.init.zeros_(self.item_bias.weight)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """[..., dim], item rows [...] -> raw outputs [..., num_tasks]: logits (binary), value - center (regression)."""
        out: Tensor = self.mlp(self.widened(hidden))
        return out if self.item_bias is None else out + self.item_bias(rows)

    def widened(self, hidden: Tensor) -> Tensor:
        """In the dtype of the heads."""
        return hidden.to(self.last.weight.dtype)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives raw outputs."""
        layer = self.mlp[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def rescale(self, task: int, scale: float, shift: float) -> None:
        """Make a task's raw output scale * raw + shift from now on."""
        last = self.last
        with torch.no_grad():
            last.weight[task] *= scale
            last.bias[task] = scale * last.bias[task] + shift
            if self.item_bias is not None:
                self.item_bias.weight[:, task] *= scale

    def scores(self, raw: Tensor) -> Tensor:
        """See `task_scores`."""
        return task_scores(self._tasks, raw)


def task_scores(tasks: Sequence[Task], raw: Tensor) -> Tensor:
    """Raw outputs -> scores [..., num_tasks]: probabilities (binary), values (regression)."""
    columns = [
        raw[..., i].sigmoid() if task.kind == "binary" else raw[..., i] + task.center for i, task in enumerate(tasks)
    ]
    return torch.stack(columns, dim=-1)


def blend_weights(tasks: Sequence[Task], blend: Mapping[str, float]) -> list[float]:
    """Weight of each task, in the order of the tasks."""
    return [blend.get(task.name, 0.0) for task in tasks]


def task_infos(tasks: Sequence[Task], blend: Mapping[str, float]) -> tuple[TaskInfo, ...]:
    """What their scores are, and their weights in the blend."""
    weights = blend_weights(tasks, blend)
    return tuple(TaskInfo(task.name, task.kind, weight) for task, weight in zip(tasks, weights, strict=True))


def probability_that_ranks(tasks: Sequence[Task], blend: Mapping[str, float]) -> str | None:
    """The binary task whose probability alone orders candidates as the blend does, if there is one."""
    weights = {name: weight for name, weight in blend.items() if weight}
    return next(
        (t.name for t in tasks if t.kind == "binary" and len(weights) == 1 and weights.get(t.name, 0) > 0), None
    )

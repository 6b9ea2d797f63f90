"""State of a training run, saved after every epoch: weights, their average, optimizer moments, best weights."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mfalcon.errors import ConfigError
from mfalcon.models.base import Ranker
from mfalcon.models.writing import writing
from mfalcon.train.recipes import TrainConfig

PROGRESS = "progress.safetensors"


class Run:
    """A model in training and everything that continues with it."""

    def __init__(self, model: Ranker, config: TrainConfig, steps: int) -> None:
        self.model = model
        bias = model.parameters_in_logits()
        chosen = {id(parameter) for parameter in bias}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
        self._rates = (1.0, config.bias_rate)
        self.optimizer = torch.optim.AdamW([{"params": rest}, {"params": bias}], weight_decay=config.weight_decay)
        average = get_ema_multi_avg_fn(config.average_decay)
        self.average = AveragedModel(model, multi_avg_fn=average)
        self.config = config
        self.steps = steps
        self.epoch = 0
        self.best_epoch, self.best_quality = -1, -math.inf
        self.best: dict[str, Tensor] = {}

    @property
    def averaged(self) -> Ranker:
        """The model with averaged weights."""
        module = self.average.module
        assert isinstance(module, Ranker)
        return module

    def set_learning_rate(self, step: int) -> None:
        """One cycle: cosine up over the first tenth, cosine down to (nearly) zero; rab at its own multiple."""
        rate = self._rate(step)
        for group, factor in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def _rate(self, step: int) -> float:
        top, warm = self.config.learning_rate, 0.1 * self.steps
        if step < warm:
            return top * (1 - 0.96 * (1 + math.cos(math.pi * step / warm)) / 2)
        return top * (1 + math.cos(math.pi * (step - warm) / max(1.0, self.steps - warm))) / 2

    def save(self, directory: Path, identity: str) -> None:
        """Write everything, in place of what was written before. Raises CheckpointError if it cannot: that stays."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self.best.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in moments.items()}
        best = {"best_epoch": self.best_epoch, "best_auc": self.best_quality}  # whatever quality is
        counters = {"identity": identity, "epoch": self.epoch, **best}
        kept = f"the {self.epoch - 1} epochs before are kept there" if self.epoch > 1 else "nothing is kept"
        scratch = directory / "progress.partial"
        with writing(directory, f"training ends, and {kept}: the same command goes on"):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                save_file({k: t.contiguous() for k, t in tensors.items()}, scratch, {"progress": json.dumps(counters)})
                scratch.replace(directory / PROGRESS)
            finally:
                scratch.unlink(missing_ok=True)
                if not (directory / PROGRESS).exists():
                    shutil.rmtree(directory, ignore_errors=True)

    def resume(self, directory: Path, identity: str) -> int:
        """Go on from the last saved epoch, if there is one; how many epochs are done.

        Raises ConfigError for the progress of another run: hours of work, and not ours to overwrite.
        """
        path = directory / PROGRESS
        if not path.is_file():
            return 0
        try:
            with safe_open(path, framework="pt") as file:
                counters = json.loads(file.metadata()["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}); delete it to start over") from error
        if counters["identity"] != identity:
            raise ConfigError(
                f"{path}: {counters['epoch']} finished epochs of a run with other settings or other data; go on with "
                "those, write to another directory, or delete it to start over"
            )

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        self.best = part("best.")
        state = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in part("optimizer.").items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
        self.epoch, self.best_epoch = counters["epoch"], counters["best_epoch"]
        self.best_quality = counters["best_auc"]
        return self.epoch

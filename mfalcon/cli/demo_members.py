"""The two rankers of the demo: trained side by side, judged on the validation events, and merged into one."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from mfalcon.cli.merge import toml
from mfalcon.cli.training import train_checkpoint
from mfalcon.cores import owned_cores
from mfalcon.errors import EngineFailure
from mfalcon.merging.merge import Calibration, Merge
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.manifest import MANIFEST
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import Report
from mfalcon.train.merging import Fitted, evaluate_merges, fit_merge, merge_of, score_members
from mfalcon.train.recipes import TrainConfig, model_config
from mfalcon.train.splits import VALIDATION, split

CHECKPOINT = Path("checkpoints/ml-100k-dfgr")
SECOND = Path("checkpoints/ml-100k-dfgr-1")
"""The same recipe from another seed: it errs in other places."""
SECOND_SEED = 1
ENSEMBLE = Path("checkpoints/demo.toml")
MERGED = "merged"
_BUDGET_MS = 2_000
"""Nobody waits for this demo, and its machine may be busy."""


@dataclass(frozen=True, slots=True)
class Members:
    """Both, by the names that they are served under, and how they are merged."""

    loaded: Mapping[str, Checkpoint]
    merge: Merge
    weights: tuple[float, ...]

    @property
    def first(self) -> Checkpoint:
        """That of the other acts."""
        return next(iter(self.loaded.values()))


def train_members(console: Console, dataset: Dataset) -> None:
    """Those that are not there yet. One fills one core, so the second trains on another, where there is one."""
    missing = [path for path in (CHECKPOINT, SECOND) if not (path / MANIFEST).is_file()]
    for path in (CHECKPOINT, SECOND):
        if path not in missing:
            console.print(f"{path} is there already; delete it to train again")
    beside = missing == [CHECKPOINT, SECOND] and owned_cores() > 1
    with _training_beside(console) if beside else contextlib.nullcontext():
        for path in missing[:1] if beside else missing:
            training = TrainConfig(seed=0 if path == CHECKPOINT else SECOND_SEED)
            train_checkpoint(dataset, model_config(dataset, "dfgr"), training, path, threads=1)


@contextlib.contextmanager
def _training_beside(console: Console) -> Iterator[None]:
    """Train the second in a process of its own; the block ends when it does. Raises EngineFailure if it fails."""
    command = [sys.executable, "-m", "mfalcon.cli", "train", "--seed", str(SECOND_SEED), "--threads", "1"]
    console.print(f"a second one, {SECOND}, trains beside it in a process of its own")
    with subprocess.Popen([*command, "--out", str(SECOND)], stdout=subprocess.DEVNULL) as process:
        try:
            yield
            if process.wait() != 0:
                raise EngineFailure(f"training {SECOND} ended with exit code {process.returncode}")
        finally:
            process.terminate()


def merge_members(console: Console, dataset: Dataset) -> Members:
    """Fit their weights on the validation events, say what that brings there, and write the file that serves them."""
    paths = {path.name: path for path in (CHECKPOINT, SECOND)}
    members = {name: checkpoint.load(path) for name, path in paths.items()}
    plain = merge_of(members, "logit")
    scores = score_members(members, dataset, split(dataset, "A") == VALIDATION, "strict")
    fitted = fit_merge(scores, plain)
    if 0 in fitted.weights.values():  # one of them is worth nothing here, and would be left out
        share = 1 / len(members)
        fitted = Fitted(dict.fromkeys(members, share), (Calibration(),) * len(plain.tasks))
    merge, weights = merge_of(members, "logit", fitted), tuple(fitted.weights.values())
    areas = {
        report.scorer: report.auc
        for report in evaluate_merges(scores, {MERGED: (merge, weights)}, dataset, "strict")
        if isinstance(report, Report)
    }
    console.print("validation AUC: " + ", ".join(f"{name} {area:.4f}" for name, area in areas.items()))
    text = toml(MERGED, "logit", paths, plain, fitted, _BUDGET_MS)
    ENSEMBLE.write_text(text + "\n", encoding="utf-8")
    return Members(members, merge, weights)

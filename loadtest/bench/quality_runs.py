"""The trainings behind `mfalcon quality`: one process each, on one thread, and none that is there already.

A run is named by what it learns from and how (`run_identity`), so that one which was trained before is used again, and
one whose recipe has changed since is trained anew.
"""

import multiprocessing
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field, ValidationError

from loadtest.report.machine import commit
from loadtest.report.result import say
from mfalcon.errors import CheckpointError
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_kinds import Frozen
from mfalcon.train.dataset import Dataset
from mfalcon.train.recipes import TrainConfig
from mfalcon.train.run import PROGRESS
from mfalcon.train.trainer import run_identity, train


@dataclass(frozen=True, slots=True)
class QualityRun:
    """One training. model: the name of the recipe, as the results show it."""

    model: str
    config: RankerConfig
    training: TrainConfig

    @property
    def seed(self) -> int:
        """Of all chance in it."""
        return self.training.seed

    @property
    def name(self) -> str:
        """Of its checkpoint's directory."""
        return f"{self.model.replace(' ', '-')}-{self.seed}"


class RunRecord(Frozen):
    """What is kept beside a checkpoint: of which run it is, and what that cost. commit: that trained it. cpu_seconds:
    None where the training was interrupted, so that nobody measured all of it.
    """

    identity: str
    fingerprint: str
    commit: str | None
    cpu_seconds: float | None = Field(ge=0)
    num_parameters: int = Field(gt=0)


def train_runs(
    dataset: Dataset, runs: Sequence[QualityRun], directory: Path, num_processes: int
) -> dict[str, RunRecord]:
    """A checkpoint of every run in `directory`, by the run's name; what each cost. Ctrl-C keeps finished epochs.

    A training is too small for two threads: as many side by side as there are processes, in this one if it is one.
    """
    if num_processes == 1:
        return {run.name: train_run(dataset, run, directory) for run in runs}
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn")) as pool:
        records = pool.map(train_run, [dataset] * len(runs), runs, [directory] * len(runs))
        return {run.name: record for run, record in zip(runs, records, strict=True)}


def train_run(dataset: Dataset, run: QualityRun, directory: Path) -> RunRecord:
    """Train it on one thread, or find it trained."""
    identity = run_identity(dataset, run.config, run.training)
    out, beside = directory / run.name, directory / f"{run.name}.json"
    if (found := _record(beside)) is not None and found.identity == identity and _is_there(out, found):
        say(f"{out}: is there already, trained by commit {found.commit or 'unknown'}")
        return found
    checkpoint.check_replaceable(out)
    unfinished = directory / f".{run.name}.progress"
    began, is_whole, threads = time.process_time(), not (unfinished / PROGRESS).is_file(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = train(dataset, run.config, run.training, unfinished, report=lambda _: None, notify=say)
    finally:
        torch.set_num_threads(threads)
    cpu_seconds = time.process_time() - began
    fingerprint = checkpoint.save(out, model, dataset.items)
    parameters = sum(p.numel() for p in model.parameters())
    record = RunRecord(
        identity=identity,
        fingerprint=fingerprint,
        commit=commit(),
        cpu_seconds=cpu_seconds if is_whole else None,
        num_parameters=parameters,
    )
    beside.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(unfinished, ignore_errors=True)
    say(f"{out}: trained in {cpu_seconds:.0f} CPU s")
    return record


def load_runs(runs: Sequence[QualityRun], directory: Path) -> dict[str, Checkpoint]:
    """Their checkpoints by name."""
    return {run.name: checkpoint.load(directory / run.name) for run in runs}


def _record(path: Path) -> RunRecord | None:
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def _is_there(out: Path, record: RunRecord) -> bool:
    try:
        return checkpoint.load(out).fingerprint == record.fingerprint
    except CheckpointError:
        return False

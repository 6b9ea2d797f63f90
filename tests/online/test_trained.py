"""The main job on real input: quality of a trained ranker, its laws, and online scores that equal the offline ones."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from loadtest.bench.ranking_quality import LOGISTIC, baselines
from loadtest.faults.chaos_client import ChaosOptions
from mfalcon.cli.chaos import run_against
from mfalcon.cli.process import serving
from mfalcon.cli.replay import replay_online
from mfalcon.laws import check
from mfalcon.models import checkpoint
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import evaluate
from mfalcon.train.splits import TEST, split
from mfalcon_client import Client

STRICT_AUC = 0.760
"""Bar for one seed of the default recipe; `make quality` holds the medians of three against higher ones."""
OVER_LOGISTIC = 0.04
QUICK_AUC = 0.74
"""Of a sixth of the recipe; the logistic baseline has 0.714 (tests/loadtest/bench/test_ranking_quality.py)."""


def test_a_little_training_ranks_better_than_the_logistic_baseline(loaded: Checkpoint, ml100k: Dataset) -> None:
    report, _, _ = evaluate(loaded.model, ml100k, split(ml100k, "A") == TEST, "strict")
    assert report.num_rows == 10_000
    assert report.auc >= QUICK_AUC


@pytest.mark.thorough
def test_ranks_better_than_the_bar_and_the_baselines(wholly_trained: Path, ml100k: Dataset) -> None:
    whole = checkpoint.load(wholly_trained)
    report, _, _ = evaluate(whole.model, ml100k, split(ml100k, "A") == TEST, "strict")
    logistic = next(row for row in baselines(ml100k) if row.scorer == LOGISTIC)
    assert report.num_rows == 10_000
    assert report.auc >= STRICT_AUC
    assert report.auc >= logistic.auc + OVER_LOGISTIC


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_laws_hold_on_trained_weights(trained: Path, dtype: torch.dtype) -> None:
    broken = [result for result in check(checkpoint.load(trained, dtype)) if not result.holds]
    assert not broken


@pytest.mark.parametrize("one_of", [8, pytest.param(1, marks=pytest.mark.thorough)])
def test_online_equals_offline(trained: Path, loaded: Checkpoint, ml100k: Dataset, one_of: int) -> None:
    """For every user, or one of so many."""
    chosen = (split(ml100k, "A") == TEST) & (ml100k.user % one_of == 0)
    with serving(trained) as served, Client(served.grpc) as client:
        result = replay_online(client, loaded.model, ml100k, chosen, "strict")
    assert result.num_rows == np.count_nonzero(chosen) >= 400
    assert result.reused_tokens > 0
    assert result.holds, result


def test_mixed_clients_get_every_answer_once_and_right(trained: Path) -> None:
    """How late answers are is a figure of a quiet machine, and nothing to assert on a busy one."""
    options = ChaosOptions(
        seconds=3, num_clients=16, num_users=48, rate=120, deadline_s=20, delete_share=0.1, max_history=64
    )
    with serving(trained) as served:
        report = run_against(trained, options, [served.grpc])
    assert report.checked >= 10  # beside much other work
    assert set(report.mixes) == {"appends_that_raced", "ranks_during_a_delete", "ranks_with_recent_events"}
    assert dataclasses.replace(report, late=0).holds, report

"""Merging offline: each member is scored as alone, and a fit finds who is worth what."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mfalcon.errors import ConfigError
from mfalcon.merging.merge import Calibration, Merge, logit, sigmoid
from mfalcon.models.checkpoint import Checkpoint
from mfalcon.models.registry import build
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import RegressionReport, Report, evaluate
from mfalcon.train.merging import (
    MemberScores,
    check_members,
    correlations,
    evaluate_merges,
    fit_merge,
    merge_of,
    score_members,
)
from mfalcon.train.recipes import model_config
from mfalcon.train.splits import TEST, split
from mfalcon.train.synthetic import synthetic
from mfalcon.types import MERGE_METHODS, Floats, MergeMethod, TaskInfo

DATASET = synthetic(40, 50, 25, seed=2)
IS_TEST = split(DATASET, "A") == TEST
TASKS = (TaskInfo("like", "binary", 1.0), TaskInfo("rating", "regression", 0.05))


def checkpoint(seed: int, architecture: str = "dfgr") -> Checkpoint:
    torch.manual_seed(seed)
    model = build(model_config(DATASET, architecture, dim=8, max_history=20, window_chunk=5)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.items.load_items(DATASET.items)
    return Checkpoint(model.requires_grad_(False), DATASET.items, f"f{seed}")


def experts(*noises: float, biases: tuple[float, ...] = (), num: int = 4_000) -> MemberScores:
    """Members that know the log odds and the value but for noise of their own, and labels drawn from these."""
    rng = np.random.default_rng(0)
    truth, value = rng.normal(0, 1.5, num), rng.normal(3.5, 1, num)
    labels = np.stack([rng.random(num) < sigmoid(truth), value], axis=1).astype(np.float32)
    scores: dict[str, Floats] = {}
    for at, noise in enumerate(noises):
        raw = truth + rng.normal(0, noise, num) + (biases[at] if biases else 0)
        scores[f"m{at}"] = np.stack([sigmoid(raw), value + rng.normal(0, noise, num)]).astype(np.float32)
    return MemberScores(np.arange(num), scores, labels)


def test_members_are_scored_as_alone_and_reported_beside_the_merge() -> None:
    members = {"one": checkpoint(0), "other": checkpoint(1, "hstu")}
    check_members(members)
    merge = merge_of(members, "logit")
    found = score_members(members, DATASET, IS_TEST, "strict")
    reports = evaluate_merges(found, {"both": (merge, [1.0, 3.0])}, DATASET, "strict")
    assert [(r.scorer, r.task) for r in reports] == [
        (s, t) for s in ("one", "other", "both") for t in ("like", "rating")
    ]
    for at, (name, member) in enumerate(members.items()):
        alone, positions, scores = evaluate(member.model, DATASET, IS_TEST, "strict")
        assert np.array_equal(positions, found.index) and np.array_equal(scores.T, found.scores[name])
        assert reports[2 * at] == replace(alone, scorer=name)
    both = evaluate_merges(found, {"both": (merge, [1.0, 0.0])}, DATASET, "strict")[-2:]
    assert isinstance(both[0], Report) and isinstance(reports[0], Report)
    assert both[0].auc == pytest.approx(reports[0].auc, abs=1e-9)  # a member of weight 0 has no say
    assert isinstance(both[1], RegressionReport)


def test_what_cannot_be_merged_is_refused() -> None:
    one, other = checkpoint(0), checkpoint(1)
    with pytest.raises(ConfigError, match="at least 2"):
        check_members({"one": one})
    tasks = tuple(t.model_copy(update={"value_at_least": 3.0}) if t.kind == "binary" else t for t in DATASET.tasks)
    other.model.config = other.model.config.model_copy(update={"tasks": tasks})
    with pytest.raises(ConfigError, match="one and other cannot be merged: task like learns another label"):
        check_members({"one": one, "other": other})
    other.model.config = other.model.config.model_copy(update={"blend": {"like": 2.0}})
    with pytest.raises(ConfigError, match="blend 2"):
        check_members({"one": one, "other": other})


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_a_fit_trusts_those_who_know(method: MergeMethod) -> None:
    members = experts(0.5, 0.5, 3.0)
    plain = Merge(method, TASKS)
    fitted = fit_merge(members, plain)
    m0, m1, m2 = fitted.weights.values()
    assert min(m0, m1, m2) >= 0 and m0 + m1 + m2 == pytest.approx(1)
    assert abs(m0 - m1) < 0.1 and m2 < 0.1
    calibrated = Merge(method, TASKS, fitted.calibration)
    equal, best = [
        [r.ne for r in evaluate_merges(members, {"m": merge}, _dataset(members), "strict") if isinstance(r, Report)][-1]
        for merge in ((plain, [1, 1, 1]), (calibrated, list(fitted.weights.values())))
    ]
    assert best < equal - 0.01


def test_a_fit_mends_what_all_members_get_wrong() -> None:
    members = experts(0.01, 0.01, biases=(1.0, 1.0))
    like, rating = fit_merge(members, Merge("logit", TASKS)).calibration
    assert like.shift == pytest.approx(-like.scale, abs=0.15)
    assert like.scale == pytest.approx(1, abs=0.1)
    assert (rating.scale, rating.shift) == pytest.approx((1, 0), abs=0.01)


def test_a_task_of_one_label_is_left_as_it_is() -> None:
    members = experts(0.5, 0.5)
    members.labels[:, 0] = 1
    fitted = fit_merge(members, Merge("logit", TASKS))
    assert fitted.calibration[0] == Calibration() != fitted.calibration[1]
    members.labels[:, 1] = 3
    with pytest.raises(ConfigError, match="more than one label"):
        fit_merge(members, Merge("logit", TASKS))


def test_correlation_is_of_logits() -> None:
    members = experts(0.5, 0.5)
    like, rating = correlations(members, Merge("logit", TASKS))
    one, other = (logit(scores[0].astype(np.float64)) for scores in members.scores.values())
    assert (like.first, like.second) == ("m0", "m1")
    assert like.r == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert 0.5 < rating.r < 1


def _dataset(members: MemberScores) -> Dataset:
    return replace(DATASET, user=np.zeros(len(members.index), dtype=np.int64))

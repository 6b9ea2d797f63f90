"""Training: it learns, an interruption changes nothing to the bit, and the best epoch is what is kept."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import mfalcon.train.objective
from mfalcon.errors import ConfigError, MFalconError
from mfalcon.models.base import Ranker
from mfalcon.models.config import RankerConfig
from mfalcon.models.config_features import EmbeddingConfig
from mfalcon.models.registry import architecture as registered
from mfalcon.models.registry import rankers, trained_here
from mfalcon.train.counters import counters_config
from mfalcon.train.dataset import Dataset, counted_items
from mfalcon.train.evaluate import Report, evaluate
from mfalcon.train.recipes import TrainConfig, model_config, train_config
from mfalcon.train.run import PROGRESS
from mfalcon.train.splits import TRAIN as TRAIN_PART
from mfalcon.train.splits import VALIDATION, split
from mfalcon.train.synthetic import synthetic
from mfalcon.train.trainer import Progress, run_identity, train

DATASET = synthetic(60, 50, 25, seed=1)
TRAIN = TrainConfig(epochs=3, batch_size=8, seed=3)


def small(architecture: str = "dfgr", dataset: Dataset = DATASET) -> RankerConfig:
    if not registered(architecture).encodes_prefix:
        return model_config(dataset, architecture, dim=16, max_history=24)
    return model_config(dataset, architecture, dim=16, num_layers=2, max_history=24, window_chunk=12)


def silent(_: Progress) -> None:
    pass


def refuse(_: Progress) -> None:
    raise AssertionError("trained again")


def assert_same(a: Ranker, b: Ranker) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def losses(seen: list[Progress]) -> list[float]:
    """Mean training loss of each epoch."""
    return [p.loss for p in seen if p.validation is None and p.step == p.steps_per_epoch]


@pytest.mark.parametrize("architecture", [name for name in rankers() if name in trained_here()])
def test_it_learns(tmp_path: Path, architecture: str) -> None:
    seen: list[Progress] = []
    config = TRAIN.model_copy(update={"epochs": 5, "learning_rate": 5e-3, "patience": 5})
    model = train(DATASET, small(architecture), config, tmp_path, seen.append)
    by_epoch = losses(seen)
    assert by_epoch[-1] < by_epoch[0] - 0.02
    report, _, _ = evaluate(model, DATASET, split(DATASET, "A") == VALIDATION, "strict")
    assert report.auc > 0.55
    assert not model.training
    steps = [p for p in seen if p.validation is None]
    assert [p.step for p in steps[: steps[0].steps_per_epoch]] == list(range(1, steps[0].steps_per_epoch + 1))
    assert all(p.targets_per_second > 0 for p in steps)


def test_it_learns_in_an_open_vocabulary_that_lists_no_item(tmp_path: Path) -> None:
    embedding = EmbeddingConfig(kind="robe-mix", memory_mb=0.001, block=8)  # 250 numbers for 50 vectors of 16
    unlisted = DATASET.unlisted()
    config = RankerConfig.model_validate(
        small().model_dump() | {"num_items": 1, "side_features": (), "embedding": embedding.model_dump()}
    )
    seen: list[Progress] = []
    once = TRAIN.model_copy(update={"epochs": 5, "learning_rate": 5e-3, "patience": 5})
    model = train(unlisted, config, once, tmp_path, seen.append)
    assert losses(seen)[-1] < losses(seen)[0] - 0.02
    assert counted_items(unlisted, split(DATASET, "A") == TRAIN_PART).num_events is None
    assert evaluate(model, unlisted, split(DATASET, "A") == VALIDATION, "strict")[0].auc > 0.55


def test_a_recipe_counts_the_ids_of_its_data() -> None:
    embedding = EmbeddingConfig(kind="robe-v0", memory_mb=0.001, block=8)
    config = model_config(DATASET, "dfgr", embedding=embedding)
    assert config.shared == embedding.model_copy(update={"num_ids": len(np.unique(DATASET.events["item_id"]))})
    assert model_config(DATASET, "dfgr", embedding=EmbeddingConfig()).embedding is None


def with_hint(noise: float = 0.3) -> Dataset:
    """The data set with a feature that is the label and noise, which every fifth event lacks."""
    rng = np.random.default_rng(0)
    liked = DATASET.events["value"] >= 4
    hint = (100 + 20 * (liked + noise * rng.normal(size=len(liked)))).astype(np.float32)
    hint[::5] = np.nan
    return replace(DATASET, dense={"hint": hint})


@pytest.mark.parametrize("architecture", [name for name in rankers() if name in trained_here()])
def test_it_learns_from_dense_features_and_does_without_them(tmp_path: Path, architecture: str) -> None:
    hinted = with_hint()
    config = small(architecture, hinted)
    assert [feature.name for feature in config.dense_features] == ["hint"]
    model = train(hinted, config, TRAIN.model_copy(update={"learning_rate": 5e-3}), tmp_path, silent)
    chosen = split(hinted, "A") == VALIDATION
    with_it, _, _ = evaluate(model, hinted, chosen, "strict")
    without, _, _ = evaluate(model, DATASET, chosen, "strict")
    assert with_it.auc > 0.85 > without.auc > 0.5


def test_it_learns_from_counters(tmp_path: Path) -> None:
    """And from nothing else that tells items apart: every one is the unknown item here."""
    counters = counters_config(DATASET, split(DATASET, "A") == TRAIN_PART, is_strict=True)
    plain = small()
    config = plain.model_copy(update={"counters": counters})
    learn = TRAIN.model_copy(update={"learning_rate": 5e-3, "epochs": 4, "item_dropout": 0.99})
    chosen = split(DATASET, "A") == VALIDATION
    with_them, _, _ = evaluate(train(DATASET, config, learn, tmp_path / "a", silent), DATASET, chosen, "strict")
    without, _, _ = evaluate(train(DATASET, plain, learn, tmp_path / "b", silent), DATASET, chosen, "strict")
    assert with_them.auc > without.auc + 0.02


def test_other_numbers_of_a_feature_are_another_run(tmp_path: Path) -> None:
    hinted = with_hint()
    train(hinted, small(dataset=hinted), TRAIN, tmp_path, silent)
    with pytest.raises(ConfigError):
        train(with_hint(noise=0.4), small(dataset=hinted), TRAIN, tmp_path, silent)


def test_a_field_that_comes_later_and_is_not_given_names_no_other_run() -> None:
    class Later(RankerConfig):
        added: int | None = None

    before = small()
    after = Later.model_validate(before.model_dump())
    assert run_identity(DATASET, after, TRAIN) == run_identity(DATASET, before, TRAIN)
    assert run_identity(DATASET, after.model_copy(update={"added": 0}), TRAIN) != run_identity(DATASET, before, TRAIN)
    assert run_identity(DATASET, before, TRAIN.model_copy(update={"seed": 4})) != run_identity(DATASET, before, TRAIN)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tmp_path: Path) -> None:
    one = train(DATASET, small(), TRAIN, tmp_path / "a", silent)
    assert_same(one, train(DATASET, small(), TRAIN, tmp_path / "b", silent))
    other = train(DATASET, small(), TRAIN.model_copy(update={"seed": 4}), tmp_path / "c", silent)
    assert not torch.equal(one.items.id.weight, other.items.id.weight)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("architecture", trained_here())
@pytest.mark.parametrize("after", [1, 15, 20])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path, architecture: str, after: int) -> None:
    """Stopped within the first epoch, within a later one and again, each time without a word."""
    whole = train(DATASET, small(architecture), TRAIN, tmp_path / "whole", silent)
    steps = 0

    def interrupt(_: Progress) -> None:
        nonlocal steps
        steps += 1
        if steps in (after, after + 12):
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            train(DATASET, small(architecture), TRAIN, tmp_path / "parts", interrupt)
    assert_same(train(DATASET, small(architecture), TRAIN, tmp_path / "parts", silent), whole)
    # A run that is complete is not trained again.
    assert_same(train(DATASET, small(architecture), TRAIN, tmp_path / "parts", refuse), whole)


def test_a_run_that_goes_on_says_so(tmp_path: Path) -> None:
    told: list[str] = []

    def interrupt(step: Progress) -> None:
        if step.epoch == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(DATASET, small(), TRAIN, tmp_path, interrupt, told.append)
    assert told == []
    train(DATASET, small(), TRAIN, tmp_path, silent, told.append)
    assert told[0] == "going on after epoch 1"
    assert re.fullmatch(r"kept: epoch \d of 3, validation AUC 0\.\d{4}; all epochs are done", told[1])


def corrected(what: str) -> Dataset:
    """DATASET with other content and as many events, as when a file was corrected and training started again."""
    items, context = DATASET.items, DATASET.user_context
    events = DATASET.events.copy()
    if what == "value":
        events["value"] = 6 - events["value"]
    elif what == "side":
        items = replace(items, side={**items.side, "year": np.roll(items.side["year"], 1)})
    else:
        context = {**context, "age": np.roll(context["age"], 1)}
    return replace(DATASET, events=events, items=items, user_context=context)


@pytest.mark.parametrize("other", ["seed", "value", "side", "context"])
def test_progress_of_another_run_is_refused_and_kept(tmp_path: Path, other: str) -> None:
    train(DATASET, small(), TRAIN.model_copy(update={"epochs": 1}), tmp_path, silent)
    before = (tmp_path / PROGRESS).read_bytes()
    config = TRAIN.model_copy(update={"epochs": 1, "seed": 9 if other == "seed" else TRAIN.seed})
    with pytest.raises(ConfigError, match=r"1 finished epochs of a run with other settings or other data.*delete it"):
        train(DATASET if other == "seed" else corrected(other), small(), config, tmp_path, refuse)
    assert (tmp_path / PROGRESS).read_bytes() == before


def test_progress_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / PROGRESS).write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"progress\.safetensors: cannot be read .* delete it"):
        train(DATASET, small(), TRAIN, tmp_path, refuse)


@pytest.mark.parametrize(("num_events", "is_few"), [(300, True), (600, False)])
def test_few_validation_events_are_warned_of(tmp_path: Path, num_events: int, is_few: bool) -> None:
    told: list[str] = []
    part = replace(DATASET, events=DATASET.events[:num_events], user=DATASET.user[:num_events])
    train(part, small(dataset=part), TRAIN.model_copy(update={"epochs": 1}), tmp_path, silent, told.append)
    *warnings, kept = told
    assert [line.startswith("warning: only 30 validation events") for line in warnings] == [True] * is_few
    assert kept.startswith("kept: epoch 1 of 1")


def test_heads_share_the_width() -> None:
    with pytest.raises(ConfigError, match="dim 15 is not a multiple of the number of heads, 2"):
        model_config(DATASET, "dfgr", dim=15, num_heads=2)


def with_aucs(monkeypatch: pytest.MonkeyPatch, aucs: list[float], weights: list[torch.Tensor]) -> None:
    """Let validation say what the test wants, and note the weights it was asked about."""

    def say(model: Ranker, dataset: Dataset, *_: object) -> tuple[Report, None, None]:
        weights.append(model.items.id.weight.detach().clone())
        value = aucs[len(weights) - 1]
        return Report("like", "strict", 1, value, 1.0, value, value), None, None

    monkeypatch.setattr(mfalcon.train.objective, "evaluate", say)


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights: list[torch.Tensor] = []
    with_aucs(monkeypatch, [0.6, 0.8, 0.7, 0.8], weights)
    seen: list[Progress] = []
    model = train(DATASET, small(), TRAIN.model_copy(update={"epochs": 4}), tmp_path, seen.append)
    assert [p.best_epoch for p in seen if p.validation] == [0, 1, 1, 1]
    assert torch.equal(model.items.id.weight, weights[1])


@pytest.mark.parametrize("patience", [1, 2])
def test_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int) -> None:
    weights: list[torch.Tensor] = []
    with_aucs(monkeypatch, [0.6, 0.7, *[0.65] * 20], weights)
    train(DATASET, small(), TRAIN.model_copy(update={"epochs": 12, "patience": patience}), tmp_path, silent)
    assert len(weights) == 2 + patience


def test_a_validation_part_of_one_class_is_named(tmp_path: Path) -> None:
    """A first export in which everybody liked everything: AUC is undefined, and the error says what is wrong."""
    events = DATASET.events.copy()
    events["value"] = 5
    with pytest.raises(MFalconError):
        train(replace(DATASET, events=events), small(), TRAIN, tmp_path, silent)


@pytest.mark.parametrize("num_events", [1, 3])
def test_a_data_set_too_small_to_split_is_named(tmp_path: Path, num_events: int) -> None:
    tiny = replace(DATASET, events=DATASET.events[:num_events], user=DATASET.user[:num_events])
    with pytest.raises(MFalconError):
        train(tiny, small(dataset=tiny), TRAIN, tmp_path, silent)


def test_the_table_of_items_reaches_the_model(tmp_path: Path) -> None:
    model = train(DATASET, small(), TRAIN.model_copy(update={"epochs": 1}), tmp_path, silent)
    assert model.items.get_buffer("rows_year")[1:].tolist() == np.asarray(DATASET.items.side["year"]).tolist()


def test_a_model_without_layers_is_given_none() -> None:
    for what, give in (
        ("layers", partial(model_config, num_layers=2)),
        ("heads", partial(model_config, num_heads=2)),
        ("window_chunk", partial(model_config, window_chunk=5)),
    ):
        with pytest.raises(ConfigError, match=f"{what}: got"):
            give(DATASET, "din")
    assert model_config(DATASET, "din").window_chunk == 1


def test_each_kind_has_training_of_its_own() -> None:
    assert train_config("dfgr") == TrainConfig()
    assert train_config("din").batch_size > train_config("dfgr").batch_size

"""Slices, intervals and leads: of the right events, over draws of users, and against whoever is best."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mfalcon.cli.datasets import data_of
from mfalcon.cli.evaluate_tasks import plot_standings, slices_table
from mfalcon.errors import ConfigError
from mfalcon.train.baselines import item_mean, logistic_user_item, popularity
from mfalcon.train.bootstrap import aucs, draws_of, interval, rmses
from mfalcon.train.dataset import Dataset
from mfalcon.train.evaluate import MODEL
from mfalcon.train.sequences import labels
from mfalcon.train.slices import slices
from mfalcon.train.splits import TEST, TRAIN, VALIDATION, Split, split
from mfalcon.train.standings import Prediction, predict_baselines, standings
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(40, 50, 25, seed=2)
PARTS = split(DATASET, "A")
CHOSEN, FIT, CHOOSE = PARTS == TEST, PARTS == TRAIN, PARTS == VALIDATION


def test_the_auc_of_a_draw_is_that_of_its_events_repeated() -> None:
    rng = np.random.default_rng(0)
    users, label = rng.integers(0, 9, 60), rng.integers(0, 2, 60).astype(np.float64)
    score = rng.integers(0, 6, 60) / 5  # with ties
    draws = draws_of(users, seed=3)
    assert draws[0].tolist() == [1] * 60
    for values, of in ((aucs(label, score, draws), roc_auc_score), (rmses(label, score, draws), None)):
        for draw in (0, 1, 17):
            truth, said = np.repeat(label, draws[draw]), np.repeat(score, draws[draw])
            expected = of(truth, said) if of else math.sqrt(np.mean((truth - said) ** 2))
            assert math.isclose(values[draw], expected)
    for user in range(9):  # drawn as a whole
        assert (draws[:, users == user] == draws[:, users == user][:, :1]).all()
    assert len(draws) == 201
    assert np.isnan(aucs(np.ones(60), score, draws)).all()
    assert all(math.isnan(end) for end in interval(np.full(3, np.nan)))


def test_an_interval_holds_what_it_says() -> None:
    """Of 60 samples of users whose AUC is known, about 57 intervals hold it."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        users = np.repeat(np.arange(40), 8)
        label = (rng.random(320) < 0.4).astype(np.float64)
        low, high = interval(aucs(label, rng.random(320), draws_of(users, seed=int(rng.integers(1 << 30))))[1:])
        held += low <= 0.5 <= high
    assert 50 <= held <= 60


@pytest.mark.parametrize("kind", ["A", "B"])
def test_slices_are_of_the_right_events(kind: Split) -> None:
    parts = split(DATASET, kind)
    chosen, fit = parts == TEST, parts == TRAIN
    found = slices(DATASET, chosen, fit, "order")
    users, items = DATASET.user[chosen], DATASET.events["item_id"][chosen]
    known, learned = set(DATASET.user[fit]), DATASET.events["item_id"][fit]
    new = np.array([user not in known for user in users])
    assert ("new users" in found) == bool(new.any()) and ("known users" in found) == bool((~new).any())
    for name, rows in (("new users", new), ("known users", ~new)):
        assert name not in found or found[name].tolist() == rows.tolist()
    assert ("new items" in found) == bool(set(items) - set(learned))
    seen = np.array([np.count_nonzero(DATASET.user[:at] == DATASET.user[at]) for at in np.flatnonzero(chosen)])
    for name, rows in found.items():
        if " to " in name:
            low, high = (int(word) for word in name.removesuffix(" events").split(" to "))
            assert rows.tolist() == ((seen >= low) & (seen <= high)).tolist()
    by_length = sum(rows.astype(int) for name, rows in found.items() if "events" in name)
    by_item = sum(rows.astype(int) for name, rows in found.items() if "items" in name)
    assert (np.asarray(by_length) == 1).all() and (np.asarray(by_item) == 1).all()
    head = set(items[found["head items"]])
    assert np.isin(learned, list(set(learned) - set(items[found["tail items"]]))).mean() >= 0.5
    least = min(np.count_nonzero(learned == item) for item in head)
    assert all(np.count_nonzero(learned == item) <= least for item in set(items[found["tail items"]]))


def test_baselines_are_fitted_on_the_training_events_alone() -> None:
    found = predict_baselines(DATASET, CHOSEN, FIT, CHOOSE, trees=False)
    truth = labels(DATASET, DATASET.tasks)[:, 0].astype(np.float64)
    item = DATASET.items.rows(np.ascontiguousarray(DATASET.events["item_id"]))
    assert [(p.task, p.scorer) for p in found] == [
        ("like", "item mean"),
        ("like", "popularity"),
        ("like", "logistic"),
        ("rating", "item mean"),
    ]
    expected = item_mean(item, truth, FIT), popularity(item, FIT), logistic_user_item(DATASET.user, item, truth, FIT)
    for prediction, values in zip(found, expected, strict=False):
        assert np.array_equal(prediction.values, values[CHOSEN])
    turned = DATASET.events.copy()
    turned["value"][CHOSEN] = 6 - turned["value"][CHOSEN]  # nobody learns from what is judged
    again = predict_baselines(replace(DATASET, events=turned), CHOSEN, FIT, CHOOSE, trees=False)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(found, again, strict=True))


def featureless() -> Dataset:
    return replace(DATASET, side_features=(), user_context={}, dense={})


@pytest.mark.parametrize("dataset", [DATASET, featureless()])
def test_trees_need_no_features(dataset: Dataset) -> None:
    told: list[str] = []
    found = predict_baselines(dataset, CHOSEN, FIT, CHOOSE, trees=True, notify=told.append, max_trees=3)
    (trees,) = (prediction for prediction in found if prediction.scorer == "trees")
    assert told == ["growing trees for like"]
    assert ((trees.values > 0) & (trees.values < 1)).all() and len(np.unique(trees.values)) > 1


def test_who_knows_leads_and_who_guesses_does_not(tmp_path: Path) -> None:
    truth = labels(DATASET, DATASET.tasks)[CHOSEN].astype(np.float64)
    others = predict_baselines(DATASET, CHOSEN, FIT, CHOOSE, trees=False)
    knows = [Prediction("like", MODEL, truth[:, 0]), Prediction("rating", MODEL, truth[:, 1])]
    found, leads = standings(DATASET, CHOSEN, FIT, [*knows, *others], "strict")
    (best,) = (s for s in found if (s.task, s.slice, s.scorer) == ("like", "all", MODEL))
    assert (best.value, best.low, best.high, best.num_rows) == (1, 1, 1, len(truth))
    assert best.mean_label == pytest.approx(truth[:, 0].mean())
    (ahead,) = (lead for lead in leads if (lead.task, lead.slice) == ("like", "all"))
    against = max(s.value for s in found if (s.task, s.slice) == ("like", "all") and s.scorer != MODEL)
    assert ahead.value == pytest.approx(1 - against) and 0 < ahead.low <= ahead.value <= ahead.high
    (less,) = (lead for lead in leads if (lead.task, lead.slice) == ("rating", "all"))
    assert less.value > 0  # an error that is smaller
    guesses = [Prediction("like", MODEL, 1 - truth[:, 0])]
    _, leads = standings(DATASET, CHOSEN, FIT, [*guesses, *others], "strict")
    assert next(lead for lead in leads if lead.slice == "all").high < 0
    own = [s for s in found if s.task == "like"]
    assert slices_table("like", own, leads).row_count == len({s.slice for s in own})
    plot_standings("title", found, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_fetched_that_nobody_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert data_of("mine.csv", "ml-100k-dfgr") == "mine.csv"
    assert data_of(None, "synthetic-dfgr") == "synthetic"
    with pytest.raises(ConfigError, match="--data: ml-100k-dfgr was trained on MovieLens-100K, which is not in"):
        data_of(None, "ml-100k-dfgr")
    with pytest.raises(ConfigError, match="--data: name the events, with --columns as shop-dfgr was trained"):
        data_of(None, "shop-dfgr")
    assert list(tmp_path.iterdir()) == []

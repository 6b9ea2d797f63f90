"""Interests as features: what each is, and that no user's are of a model that has learnt from him."""

import numpy as np
import torch

from mfalcon.models.lum import LUM
from mfalcon.train.interest_features import NAMES, as_columns, cross_fitted, halves, interest_features
from mfalcon.train.interests import interests_of
from mfalcon.train.recipes import model_config
from mfalcon.train.sequences import Columns, windows_of
from mfalcon.train.synthetic import synthetic

DATASET = synthetic(30, 40, 12, seed=2)
CONFIG = model_config(DATASET, "lum", dim=16, num_layers=1, max_history=24, window_chunk=12)


def model_of(seed: int) -> LUM:
    torch.manual_seed(seed)
    model = LUM(CONFIG).eval()
    model.items.load_items(DATASET.items)
    return model


def test_features_are_what_their_names_say() -> None:
    model = model_of(0)
    features = interest_features(model, DATASET, "strict")
    assert features.shape == (len(DATASET.events), len(NAMES)) and np.isfinite(features).all()
    columns = Columns(DATASET, CONFIG, "strict")
    items = windows_of(model, DATASET, np.ones(len(DATASET.events), dtype=np.bool_), "strict")
    index, liked = interests_of(model, columns, items, 0)
    _, disliked = interests_of(model, columns, items, model.num_target_rows // 2)
    with torch.inference_mode():
        keys = model.keys(columns.rows[index])
        near, far = (liked * keys).sum(-1), (disliked * keys).sum(-1)
    by_name = as_columns(features)
    assert np.allclose(by_name["interest_like"][index.numpy()], near.numpy(), atol=1e-5)
    assert np.allclose(by_name["interest_like_less_dislike"][index.numpy()], (near - far).numpy(), atol=1e-5)
    likeness = (liked * disliked).sum(-1).numpy()
    assert np.allclose(by_name["interest_likeness"][index.numpy()], likeness, atol=1e-5)


def test_a_user_has_the_features_of_the_model_that_has_not_seen_him() -> None:
    models = [model_of(1), model_of(2)]
    half = halves(DATASET)
    assert set(half.tolist()) == {0, 1}
    assert all(len(set(half[DATASET.user == user])) == 1 for user in range(len(DATASET.user_ids)))
    is_seen = np.arange(len(DATASET.user_ids)) % 3 > 0
    crossed = cross_fitted(models, DATASET, half, is_seen, "strict")
    alone = [interest_features(model, DATASET, "strict") for model in models]
    for fold in (0, 1):
        of_fold = is_seen[DATASET.user] & (half == fold)
        assert of_fold.any() and np.array_equal(crossed[of_fold], alone[fold][of_fold])
    unseen = ~is_seen[DATASET.user]
    assert np.allclose(crossed[unseen], (alone[0][unseen] + alone[1][unseen]) / 2, atol=1e-6)
